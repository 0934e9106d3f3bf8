"""The processes under load, and what each costs: processor time and memory (Linux: read from /proc)."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import httpx

from tests.chaos.processes import wait_until
from tests.conftest import free_port

IS_FULL = os.environ.get("LOAD") == "full"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_RATE = re.compile(r"Requests/sec:\s*([\d.]+)")


class Measured:
    """A Python process. command: what follows `python`."""

    def __init__(self, command: list[str], env: Mapping[str, str], log: IO[bytes]) -> None:
        self.process = subprocess.Popen([sys.executable, *command], env=env, stdout=log, stderr=log)

    @property
    def processor_seconds(self) -> float:
        """Spent so far, by all its threads."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    @property
    def memory_bytes(self) -> int:
        """Resident, without files that processes share."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * _PAGE

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(timeout=40)


class InProcess(Measured):
    """`tests.load.in_process`. folder: for the files that go in and out."""

    def __init__(self, env: Mapping[str, str], log: IO[bytes], folder: Path) -> None:
        self._source, self._target = folder / "source", folder / "target"
        command = [sys.executable, "-m", "tests.load.in_process"]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def upscale(self, data: bytes) -> tuple[float, bytes]:
        """The seconds that it took, and the image."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self._source.write_bytes(data)
        self.process.stdin.write(f"{self._source} {self._target}\n".encode())
        self.process.stdin.flush()
        return float(self.process.stdout.readline()), self._target.read_bytes()

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=40)


class Server(Measured):
    """A process that answers HTTP on loopback. command: made of its port."""

    def __init__(self, command: Callable[[str], list[str]], env: Mapping[str, str], log: IO[bytes], probe: str) -> None:
        port = str(free_port())
        super().__init__(command(port), {**env, "M3ESR_PORT": port}, log)
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=90, trust_env=False)
        wait_until(lambda: self._answers(probe), 60, f"{' '.join(command(port))} answers")

    def close(self) -> None:
        """End it, and its client."""
        self.http.close()
        super().close()

    def requests_per_second(self, path: str, seconds: float) -> float:
        """What 8 connections get out of it, by wrk."""
        command = ["wrk", "-t1", "-c8", f"-d{seconds:g}s", self.url + path]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "Non-2xx" not in told and "Socket errors" not in told, told
        return float(_RATE.findall(told)[0])

    def cost_of(self, path: str, num_requests: int) -> float:
        """Processor seconds of this process for one GET; other load on the machine hardly changes it."""
        before = self.processor_seconds
        for _ in range(num_requests):
            assert self.http.get(path).status_code == 200
        return (self.processor_seconds - before) / num_requests

    def _answers(self, probe: str) -> bool:
        assert self.process.poll() is None, "it ended"
        try:
            return self.http.get(probe).status_code < 500
        except httpx.TransportError:
            return False


def has_wrk() -> bool:
    """Whether the load generator is there."""
    return shutil.which("wrk") is not None


def slope(values: list[float]) -> float:
    """Growth per step, by least squares."""
    mean_x, mean_y = (len(values) - 1) / 2, sum(values) / len(values)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values))
    return rise / sum((x - mean_x) ** 2 for x in range(len(values)))


def tell(row: str, *words: str) -> None:
    """One line for docs/reliability.md."""
    sys.stdout.write(
        f"\n{time.strftime('%Y-%m-%d', time.gmtime())} {os.cpu_count()} cores | {row} | {'; '.join(words)}\n"
    )
