"""The pulse between a worker and its supervisor: one byte per sign of life, through a pipe."""

import contextlib
import os
import signal

READY, BUSY, IDLE, ALIVE = b"r", b"b", b"i", b"a"

# How the supervisor hands these to its child. Private: nobody sets them by hand.
PULSE_FD, WORKER_ID = "_M3ESR_PULSE_FD", "_M3ESR_WORKER_ID"


class Pulse:
    """Signs of life. READY: networks are warm. BUSY: a job began or made a step. IDLE: it ended. ALIVE: still here.

    fd: the writing end of the supervisor's pipe; None without a supervisor, then nothing is sent.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)

    @classmethod
    def from_environment(cls) -> "Pulse":
        """The pulse that the supervisor which started this process listens to."""
        fd = os.environ.get(PULSE_FD)
        return cls(int(fd) if fd else None)

    def send(self, sign: bytes) -> None:
        """Send one sign. When the supervisor is gone, ask this process to end after its job."""
        if self._fd is None:
            return
        try:
            with contextlib.suppress(BlockingIOError):  # the pipe is full of signs nobody has read yet
                os.write(self._fd, sign)
        except BrokenPipeError:
            self._fd = None
            os.kill(os.getpid(), signal.SIGTERM)
