"""What docker-compose.yml and the images promise; read as text, since no YAML parser is among our dependencies."""

import re
from pathlib import Path

import pytest

from jobs import Settings
from worker.supervisor import PUT_BACK_SECONDS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
GPU = (ROOT / "docker" / "compose.gpu.yml").read_text()
DOCKERFILES = {path.name.split(".")[0]: path.read_text() for path in (ROOT / "docker").glob("*.Dockerfile")}
MODELS_DIR = "/var/lib/m3esr-models"
# Decided by compose itself, or of no use in a container: the API's host port is M3ESR_PORT outside only.
NOT_PASSED_ON = {
    "host",
    "port",
    "allow_anonymous",
    "device",
    "checkpoint",
    "models_dir",
    "worker_metrics_host",
    "worker_metrics_port",
}
# Of profiles that need a GPU: passed on to the worker of compose.gpu.yml.
FOR_THE_GPU = {
    "offload",
    "quality_weights",
    "captions",
    "caption_bits",
    "official_sampling",
    "compile",
}
# Passed on to the API alone.
FOR_THE_SERVICE = {
    "webhook_secret",
    "webhook_allow_http",
    "webhook_allow_private",
    "signed_url_seconds",
    "allow_url_input",
    "url_input_seconds",
    "url_input_allow_http",
    "url_input_allow_private",
}


def block(text: str, *path: str) -> str:
    """The lines under a key, found by their indentation of two spaces a level; comments are dropped."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for depth, key in enumerate(path):
        indent = "  " * depth
        start = next(i for i, line in enumerate(lines) if re.match(rf"{indent}{re.escape(key)}:", line))
        inside = [lines[start][len(f"{indent}{key}:") :]]
        for line in lines[start + 1 :]:
            if not line.startswith(indent + " "):
                break
            inside.append(line)
        lines = inside
    return "\n".join(lines)


def items(text: str) -> list[str]:
    """The entries of a list, without quotes and trailing comments."""
    return [entry.split(" #")[0].strip().strip('"') for entry in re.findall(r"^\s*- (.*)$", text, re.MULTILINE)]


def services() -> list[str]:
    return re.findall(r"^  (\w+):$", block(COMPOSE, "services"), re.MULTILINE)


def test_the_services_are_those_of_the_architecture():
    assert services() == ["redis", "service", "worker", "prometheus"]


def test_only_the_api_is_published_and_only_on_loopback():
    published = {
        name: items(block(COMPOSE, "services", name, "ports"))
        for name in services()
        if "    ports:" in block(COMPOSE, "services", name)
    }
    assert published.pop("prometheus") == ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"]
    assert "monitoring" in items(block(COMPOSE, "services", "prometheus", "profiles"))
    assert published == {"service": ["127.0.0.1:${M3ESR_PORT:-8000}:8000"]}


def test_redis_keeps_what_it_accepted_and_is_reached_by_nobody_else():
    arguments = items(block(COMPOSE, "services", "redis", "command"))
    pairs = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert pairs["--appendonly"] == "yes"
    assert pairs["--appendfsync"] == "everysec"
    assert pairs["--maxmemory-policy"] == "noeviction"
    assert items(block(COMPOSE, "services", "redis", "volumes")) == ["redis-data:/data"]
    assert pairs["--dir"] == "/data"
    assert items(block(COMPOSE, "services", "redis", "networks")) == ["internal"]
    assert "internal: true" in block(COMPOSE, "networks", "internal")


def test_every_service_restarts_and_says_whether_it_is_well():
    for name in services():
        text = block(COMPOSE, "services", name)
        assert "restart: unless-stopped" in text, name
        assert "healthcheck:" in text or "\nHEALTHCHECK" in DOCKERFILES[name], name


def test_images_are_pinned():
    for image in re.findall(r"^    image: (\S+)$", COMPOSE, re.MULTILINE):
        assert image.startswith("m3esr-") or re.search(r":v?\d", image), image


def test_service_and_worker_share_images_and_settings():
    folder = block(COMPOSE, "x-settings", "M3ESR_STORAGE_URL").strip()
    for name in ("service", "worker"):
        models = [f"models:{MODELS_DIR}"] if name == "worker" else []
        assert items(block(COMPOSE, "services", name, "volumes")) == [f"blobs:{folder}", *models]
        assert "<<: *settings" in block(COMPOSE, "services", name, "environment")
    passed = set(re.findall(r"^  M3ESR_(\w+):", block(COMPOSE, "x-settings"), re.MULTILINE))
    assert passed == {
        name.upper() for name in set(Settings.model_fields) - NOT_PASSED_ON - FOR_THE_SERVICE - FOR_THE_GPU
    }
    for name in FOR_THE_SERVICE:
        assert f"M3ESR_{name.upper()}:" in block(COMPOSE, "services", "service", "environment")
        assert f"M3ESR_{name.upper()}:" not in block(COMPOSE, "services", "worker", "environment")


def test_a_worker_has_time_to_finish_its_job_or_to_put_it_back():
    grace = re.search(r"stop_grace_period: (\d+)m", block(COMPOSE, "services", "worker"))
    assert grace and 60 * int(grace[1]) > Settings().drain_seconds + PUT_BACK_SECONDS


def test_a_gpu_is_asked_for_in_the_override_only():
    assert "nvidia" not in COMPOSE
    assert "driver: nvidia" in block(GPU, "services", "worker", "deploy")


def test_the_gpus_worker_has_the_libraries_and_settings_of_the_large_profiles():
    assert "EXTRAS: ${EXTRAS:-diffusion}" in block(GPU, "services", "worker", "build", "args")
    assert "${EXTRAS:+,$EXTRAS}" in DOCKERFILES["worker"]
    told = block(GPU, "services", "worker", "environment")
    assert sorted(name for name in FOR_THE_GPU if f"M3ESR_{name.upper()}:" not in told) == []
    for name in ("service", "worker"):  # both must know the profile, else the API refuses it
        assert "M3ESR_PROFILES: ${M3ESR_PROFILES:-compact}" in block(GPU, "services", name, "environment")


def test_the_volume_of_the_models_is_where_the_image_looks_for_them():
    last_stage = DOCKERFILES["worker"].rpartition("\nFROM ")[2]
    assert f"M3ESR_MODELS_DIR={MODELS_DIR}" in last_stage
    assert f"install -d -o m3esr -g m3esr /var/lib/m3esr {MODELS_DIR}" in last_stage
    assert "name: m3esr-models" in block(COMPOSE, "volumes", "models")  # docs/weights.md fills it by this name


def test_the_images_are_the_two_of_compose():
    assert sorted(DOCKERFILES) == ["service", "worker"]
    for name in DOCKERFILES:
        assert f"dockerfile: docker/{name}.Dockerfile" in block(COMPOSE, "services", name, "build")


@pytest.mark.parametrize("name", sorted(DOCKERFILES))
def test_an_image_runs_as_an_ordinary_user_and_needs_no_other_frontend(name):
    text = DOCKERFILES[name]
    assert "# syntax=" not in text  # it would be pulled before anything is built
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["m3esr"]
    assert "--uid 10001 --gid 10001" in last_stage  # one number in both images: they share a volume


def test_the_service_is_built_without_torch_and_networks():
    text = DOCKERFILES["service"].replace("no torch", "")
    assert "torch" not in text
    assert "COPY models" not in text
    assert "COPY worker" not in text
    assert 'pip install ".[service]"' in text


def test_torch_is_installed_before_the_worker_and_by_itself():
    text = DOCKERFILES["worker"]
    assert text.index('"$TORCH"') < text.index('pip install ".[worker')


def test_the_build_context_is_a_list_of_what_may_enter():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    copied = {
        name
        for text in DOCKERFILES.values()
        for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)
        for name in line.split()
    }
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_prometheus_scrapes_the_service_and_every_worker():
    config = (ROOT / "docker" / "prometheus.yml").read_text()
    assert "service:8000" in config
    port = Settings.model_fields["worker_metrics_port"].default
    assert re.search(rf"- worker\n\s+type: A\n\s+port: {port}\n", config)


def test_api_and_worker_have_no_root_powers_and_a_root_that_is_read_only():
    confined = block(COMPOSE, "x-confined")
    assert "read_only: true" in confined and items(block(COMPOSE, "x-confined", "cap_drop")) == ["ALL"]
    assert items(block(COMPOSE, "x-confined", "security_opt")) == ["no-new-privileges:true"]
    for name in ("service", "worker"):
        assert "<<: *confined" in block(COMPOSE, "services", name), name
        assert items(block(COMPOSE, "services", name, "tmpfs"))[0].startswith("/tmp"), name
        assert "\nUSER m3esr\n" in DOCKERFILES[name], name
