"""The lease of a running job: renewed from a thread of its own for as long as the job makes progress."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

import structlog

from jobs import REDIS_AWAY, JobStore
from worker.pulse import BUSY, IDLE, Pulse

RENEWALS_PER_LEASE = 5
log = structlog.get_logger(__name__)


class LeaseKeeper:
    """While entered, renews the lease of one run; `touch` at each step tells it, and the supervisor, of progress.

    A run that makes none for `stall_seconds` loses its lease although this process lives: a hung kernel must not hold
    its job for ever. clock: seconds, never going back.
    """

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        attempt_id: str,
        *,
        lease_seconds: float,
        stall_seconds: float,
        pulse: Pulse | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._attempt_id = attempt_id
        self._lease_seconds = lease_seconds
        self._stall_seconds = stall_seconds
        self._pulse = pulse or Pulse(None)
        self._clock = clock
        self._touched_at = clock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew_on, name="lease", daemon=True)

    def touch(self) -> None:
        """The run made progress."""
        self._touched_at = self._clock()
        self._pulse.send(BUSY)

    def __enter__(self) -> "LeaseKeeper":
        self.touch()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._pulse.send(IDLE)

    def renew(self) -> bool:
        """Renew once; False when there is nothing to hold any more."""
        if self._clock() - self._touched_at > self._stall_seconds:
            log.warning("job_stalled", job_id=self._job_id, stall_seconds=self._stall_seconds)
            return False
        try:
            return self._store.renew_lease(self._job_id, self._attempt_id, lease_seconds=self._lease_seconds)
        except REDIS_AWAY as error:
            log.warning("lease_not_renewed", job_id=self._job_id, reason=str(error))
            return True  # try again: it may be back before the lease is over

    def _renew_on(self) -> None:
        while not self._is_over.wait(self._lease_seconds / RENEWALS_PER_LEASE) and self.renew():
            pass
