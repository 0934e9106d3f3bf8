"""The public backbones on tiny random checkpoints in the hub's layout: command line, and service and worker."""

import io
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from m3esr import cli
from tests.fakes import picture
from tests.integration.serving import upload
from tests.unit.models.published_tiny import save_denoiser, save_sd35
from tests.unit.models.seesr_tiny import save_sd21, save_seesr

WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_denoiser(root)
    save_sd35(root, with_t5=False)
    save_seesr(root)
    save_sd21(root)
    return root


@pytest.mark.parametrize(
    ("profile", "note"), [("quality", "T5 is not installed"), ("fidelity", "RAM is not installed")]
)
def test_the_command_line_upscales_with_it(hub, tmp_path, monkeypatch, capsys, profile, note):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    source.write_bytes(picture(20, 12))
    arguments = ["--profile", profile, "--checkpoint", str(hub), "--num-steps", "2", "--prompt", "a bridge"]
    monkeypatch.setattr(sys, "argv", ["m3esr", "upscale", str(source), "-o", str(target), "--scale", "2", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert (ended.value.code or 0, told.out.split()) == (0, [str(target)])
    assert f"in.png: {note}" in " ".join(told.err.split())
    with Image.open(target) as sr:
        assert sr.size == (40, 24)
        assert np.asarray(sr).std() > 1


@pytest.fixture
def worker(hub, redis_url, tmp_path):
    """A real worker process for `quality`."""
    env = {
        **os.environ,
        "M3ESR_REDIS_URL": redis_url,
        "M3ESR_STORAGE_URL": str(tmp_path / "storage"),
        "M3ESR_PROFILES": "compact,quality",
        "M3ESR_MODELS_DIR": str(hub),
        "M3ESR_OFFLOAD": "model",
        "M3ESR_DEVICE": "cpu",
        "M3ESR_WORKER_METRICS_PORT": "0",
    }
    with (tmp_path / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", "m3esr", "work", "--profile", "quality"]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    yield process
    process.terminate()
    process.wait(timeout=60)


def test_service_and_worker_serve_it(serve, hub, worker, tmp_path):
    service = serve(profiles=("compact", "quality"))

    def profile():
        return next(p for p in service.http.get("/v1/profiles").json()["profiles"] if p["name"] == "quality")

    before = profile()
    assert before["is_served"] and not before["is_installed"]
    assert "m3esr models pull quality" in before["reason"]
    deadline = time.monotonic() + WAIT_SECONDS
    while not profile()["num_ready_workers"]:
        assert worker.poll() is None and time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
        time.sleep(0.2)
    assert (profile()["is_installed"], profile()["reason"]) == (True, "")
    assert any("non-commercial" in licence["name"] for licence in profile()["licences"])
    headers = {"Prefer": "wait=60"}
    answer = upload(service.http, picture(24, 16), headers, profile="quality", num_steps="2", maps="true")
    job = answer.json()
    assert (answer.status_code, job["status"]) == (200, "succeeded"), (job, (tmp_path / "worker.log").read_text())
    assert (job["fusion"], job["maps"], job["temperatures"]) == ("not installed", {}, {})
    assert "T5 is not installed" in job["notes"][0]
    assert (job["model"]["profile"], job["model"]["checkpoint"]) == ("quality", "dit4sr_r1")
    assert job["timings"]["denoising"] > 0
    with Image.open(io.BytesIO(service.http.get(job["result"]["url"]).content)) as sr:
        assert sr.size == (96, 64)
