"""An API process of its own to send the corpus to, and what it costs: processor time and memory of its whole tree."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from tests.conftest import free_port

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class MeasuredServer:
    """`python -m service.main` on loopback. Linux: the figures come from /proc."""

    def __init__(self, redis_url: str, storage: Path) -> None:
        port = str(free_port())
        env = {"M3ESR_REDIS_URL": redis_url, "M3ESR_STORAGE_URL": str(storage), "M3ESR_PORT": port}
        env |= {"M3ESR_LOG_LEVEL": "error", "M3ESR_MAX_QUEUE_LENGTH": "10000"}
        command = [sys.executable, "-m", "service.main"]
        self.process = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        self._await_start()
        self._baseline_bytes = _memory(self.process.pid)
        self._api_peak_bytes = 0
        self.decode_peak_bytes = 0  # of the most expensive helper or fork of one
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()

    def _await_start(self) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if self.http.get("/livez").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError("the API did not start")

    def close(self) -> None:
        """End it."""
        self._is_over.set()
        self._watch.join()
        self.http.close()
        self.process.terminate()
        self.process.wait(timeout=20)

    def processor_seconds(self) -> float:
        """Time spent so far by the tree, ended children included."""
        total = 0
        for pid in self._tree():
            if fields := _stat(pid):
                total += sum(int(value) for value in fields[11:15])
        return total / _TICKS

    @property
    def growth_bytes(self) -> int:
        """How far the process of the API grew at its peak."""
        return max(0, self._api_peak_bytes - self._baseline_bytes)

    def _sample(self) -> None:
        while not self._is_over.wait(0.02):
            api, *others = (_memory(pid) for pid in self._tree())
            self._api_peak_bytes = max(self._api_peak_bytes, api)
            self.decode_peak_bytes = max(self.decode_peak_bytes, *others, 0)

    def _tree(self) -> list[int]:
        # API, helpers, and the fork of a helper that looks at one file
        found, fresh = [self.process.pid], [self.process.pid]
        while fresh:
            children = [child for pid in fresh for child in _children(pid)]
            found += children
            fresh = children
        return found


def _children(pid: int) -> list[int]:
    # A process, or one of its threads, may end between any two of these lines: what is gone has no children
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        except OSError:
            continue
    return found


def _memory(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0  # it ended meanwhile
    return (int(pages[1]) - int(pages[2])) * _PAGE  # without files that processes share


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
