"""The command line: what a person reads when something is wrong, and that help does not wait for torch."""

import errno
import socket
import subprocess
import sys

import pytest

from m3esr import cli
from m3esr.errors import describe_os_error
from tests.conftest import free_port
from tests.fakes import picture


def run(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of `m3esr ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["m3esr", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    return ended.value.code or 0, told.out, told.err


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.png"
    path.write_bytes(picture())
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upscale", "missing.png", "-o", "out.png"], "missing.png: no such file"),
        (["upscale", ".", "-o", "out.png"], "is a folder"),
        (["upscale", "IMAGE", "-o", "out.gif"], "unknown suffix"),
        (["upscale", "IMAGE", "-o", "out.png", "--scale", "9"], "--scale: Input should be less than"),
        (["upscale", "IMAGE", "-o", "out.png", "--scale", "x"], "'--scale'"),
        (["upscale", "IMAGE", "-o", "out.png", "--scale", "2", "--width", "20"], "give one of"),
        (["upscale", "IMAGE", "-o", "out.png", "--modalities", "smell"], "--modalities"),
        (["upscale", "IMAGE", "-o", "out", "--format", "bmp"], "--format"),
        (["upscale", "IMAGE", "-o", "out.png", "--preset", "quick"], "--preset: Input should be"),
        (["upscale", "IMAGE", "-o", "out.png", "--profile", "quality"], "m3esr models pull quality"),
        (["upscale", "IMAGE", "-o", "out.png", "--profile", "best"], "'best' is not one of"),
        (["upscale", "IMAGE", "-o", "out.png", "--checkpoint", "no-folder"], "no-folder: no such folder"),
        (["upscale", "IMAGE", "-o", "out.png", "--color-correction", "sepia"], "--color-correction"),
        (["upscale", "IMAGE"], "Missing option"),
        (["submit", "missing.png", "--url", "http://127.0.0.1:1"], "missing.png: no such file"),
        (["submit", "IMAGE", "--url", "http://127.0.0.1:FREE"], "Is the server running"),
        (["submit", "IMAGE", "--url", "nonsense"], "is not an http"),
        (["nonsense"], "No such command"),
        (["up", "--port", "99999"], "--port"),
    ],
)
def test_what_a_person_can_fix_is_one_line_and_exit_code_two(monkeypatch, capsys, image, arguments, words):
    monkeypatch.setenv("M3ESR_MODELS_DIR", f"{image}.models")  # what this machine has fetched does not count
    port = str(free_port())
    arguments = [argument.replace("IMAGE", image).replace("FREE", port) for argument in arguments]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("m3esr: ") and err.count("\n") == 1


@pytest.mark.parametrize("verb", ["up", "serve"])
def test_a_taken_port_names_its_setting(monkeypatch, capsys, tmp_path, verb):
    monkeypatch.setenv("M3ESR_VAR", str(tmp_path / "var"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run(monkeypatch, capsys, verb, "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "M3ESR_PORT" in err and err.count("\n") == 1
    assert not (tmp_path / "var").exists()


def test_a_worker_without_redis_is_one_line(monkeypatch, capfd):
    monkeypatch.setenv("M3ESR_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    code, _, err = run(monkeypatch, capfd, "work")
    assert code == 2
    assert "Redis does not answer" in err and err.count("\n") == 1


def test_a_setting_of_no_meaning_is_named(monkeypatch, capsys):
    monkeypatch.setenv("M3ESR_PORT", "many")
    code, _, err = run(monkeypatch, capsys, "serve")
    assert code == 2
    assert "M3ESR_PORT" in err


def test_a_missing_extra_is_named(monkeypatch, capsys, image):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "worker")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = run(monkeypatch, capsys, "upscale", image, "-o", "out.png")
    assert code == 2
    assert "pip install 'm3esr[worker]'" in err


def test_a_full_disk_is_told_in_words():
    assert "no space left" in describe_os_error(OSError(errno.ENOSPC, "x", "/out/a.png"))


def test_profiles_tells_licences(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(monkeypatch, capsys, "profiles")
    assert code == 0
    assert "compact" in out and "NON-COMMERCIAL" in out


def test_help_is_instant_because_nothing_heavy_is_imported():
    program = (
        "import sys; sys.argv = ['m3esr', '--help']\n"
        "from m3esr.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'fastapi', 'rq', 'redis', 'httpx', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
