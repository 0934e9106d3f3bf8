"""An API process of its own to send the corpus to, and what it costs: processor time and memory of its whole tree.

Memory of the API is the growth of its resident pages without files; that of a look at a file is the PSS of a helper and
its fork, in which what they share counts once.
"""

import contextlib
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
        self._baseline_bytes = _private_bytes(self.process.pid)
        self.growth_bytes = 0  # of the process of the API, at its peak
        self.decode_peak_bytes = 0  # of a helper and its fork together
        self.peak_bytes = 0  # of both at the same moment
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

    def forget_peaks(self) -> None:
        """Begin to look for peaks anew."""
        self.growth_bytes = self.decode_peak_bytes = self.peak_bytes = 0

    def _sample(self) -> None:
        while not self._is_over.wait(0.01):
            growth = max(0, _private_bytes(self.process.pid) - self._baseline_bytes)
            decode = max(
                (_shared_out_bytes(_with_children(helper)) for helper in _children(self.process.pid)), default=0
            )
            self.growth_bytes = max(self.growth_bytes, growth)
            self.decode_peak_bytes = max(self.decode_peak_bytes, decode)
            self.peak_bytes = max(self.peak_bytes, growth + decode)

    def _tree(self) -> list[int]:
        # API, helpers, and the fork of a helper that looks at one file
        return [self.process.pid, *(pid for helper in _children(self.process.pid) for pid in _with_children(helper))]


def _with_children(pid: int) -> list[int]:
    return [pid, *_children(pid)]


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


def _private_bytes(pid: int) -> int:
    """Resident memory without the files that processes share."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0  # it ended meanwhile
    return (int(pages[1]) - int(pages[2])) * _PAGE


def _shared_out_bytes(pids: list[int]) -> int:
    """PSS: resident memory, what several processes share divided among them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
