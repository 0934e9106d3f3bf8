"""Child processes of `m3esr up`: started in their own groups, watched, and ended within seconds."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_TAIL_LINES = 12
# Together under the 10 s that Ctrl-C may take: first call, second call, kill.
ASK_SECONDS, ASK_AGAIN_SECONDS, DATABASE_SECONDS = 4.0, 3.0, 2.0
_SHIM = Path(__file__).with_name("child.py")


class ChildDied(Exception):
    """A child ended although it should serve; the message says which, how, and the end of its log."""


@dataclass(frozen=True)
class Child:
    """One running process and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    def signal(self, number: int) -> None:
        """Send a signal to the process and all it started."""
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(self.process.pid, number)

    def log_tail(self) -> str:
        """The last lines it wrote."""
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


class Children:
    """The processes, in the order they were started."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Child:
        """Start `command`; its output goes to <log folder>/<name>.log, started anew. Raises OSError."""
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log_path = self._log_folder / f"{name}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C in the terminal reaches only us: we end them, in order
            )
        child = Child(name, process, log_path)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Raise ChildDied when one has ended."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise ChildDied(f"the {child.name} {how}; the end of its log ({child.log_path}):\n{child.log_tail()}")

    def stop(self, database: str = "redis") -> None:
        """End them all within 10 s, `database` last: the others write to it. The deaf are killed."""
        rest = [child for child in self._children if child.name != database]
        _end(rest, (ASK_SECONDS, ASK_AGAIN_SECONDS))
        _end([child for child in self._children if child.name == database], (DATABASE_SECONDS,))
        self._children.clear()


def _end(children: Sequence[Child], waits_seconds: Sequence[float]) -> None:
    # A worker finishes its job on the first SIGTERM and puts it back on the second.
    for seconds in waits_seconds:
        alive = [child for child in children if child.process.poll() is None]
        for child in alive:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(child.process.poll() is None for child in alive):
            time.sleep(0.02)
    for child in children:
        if child.process.poll() is None:
            child.signal(signal.SIGKILL)
            child.process.wait()
