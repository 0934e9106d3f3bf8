"""The processes that chaos tests start and hurt: supervised workers and the API."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from tests.conftest import free_port


def wait_until(fact: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `fact()` is true; its value."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := fact():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue  # it ended meanwhile
        if int(lines["PPid"]) == pid:
            found.append(int(lines["Pid"]))
    return found


@dataclass
class Worker:
    """One supervisor process; its worker is its only child."""

    process: subprocess.Popen[bytes]

    @property
    def child(self) -> int | None:
        """Process id of the worker at work."""
        return next(iter(children_of(self.process.pid)), None)

    def hit(self, whom: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the "child", the "supervisor" or "both"."""
        child = self.child
        if whom in ("supervisor", "both"):
            self.process.send_signal(number)
        if whom in ("child", "both") and child is not None:
            os.kill(child, number)


class Service:
    """One API process on loopback, that can be killed and started again at the same address."""

    def __init__(self, env: dict[str, str], log: IO[bytes]) -> None:
        self._env = {**env, "M3ESR_PORT": str(free_port())}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._env['M3ESR_PORT']}", timeout=10)

    def start(self) -> None:
        """Start, and return once it answers."""
        command = [sys.executable, "-m", "service.main"]
        self._process = subprocess.Popen(command, env=self._env, stdout=self._log, stderr=self._log)
        wait_until(self._is_alive, 30, "the API answers")

    def kill(self) -> None:
        """SIGKILL, and its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self.client.close()

    def submit(self, image: bytes, key: str | None = None) -> httpx.Response | None:
        """The answer to an upload; None when the API died before it gave one."""
        headers = {"Idempotency-Key": key} if key else {}
        try:
            return self.client.post("/v1/upscale", files={"file": ("a.png", image)}, headers=headers)
        except httpx.TransportError:
            return None

    def accepted(self, image: bytes, key: str | None = None) -> str | None:
        """The id of the job of an upload; None when it was not accepted."""
        answer = self.submit(image, key)
        return str(answer.json()["id"]) if answer is not None and answer.status_code == 202 else None

    def _is_alive(self) -> bool:
        try:
            return self.client.get("/livez").status_code == 200
        except httpx.TransportError:
            return False
