"""How fast the lines move, kept for a second: many polls ask, and it changes with a run's end or a worker's start."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs import HeartbeatRegistry, JobQueue
from jobs.queue import line_seconds

PACE_SECONDS = 1.0


@dataclass(frozen=True)
class _Pace:
    mean_seconds: float | None
    num_workers: int
    read_at: float


class Paces:
    """The pace of each profile's line, read from Redis when it is older than `PACE_SECONDS`.

    clock: seconds, never going back.
    """

    def __init__(
        self, queue: JobQueue, heartbeats: HeartbeatRegistry, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue = queue
        self._heartbeats = heartbeats
        self._clock = clock
        self._paces: dict[str, _Pace] = {}

    def is_fresh(self, profile: str) -> bool:
        """Whether `eta_seconds` would answer without asking Redis."""
        pace = self._paces.get(profile)
        return pace is not None and self._clock() - pace.read_at < PACE_SECONDS

    def eta_seconds(self, profile: str, position: int) -> float | None:
        """Expected seconds until the waiting job at `position` is done; None while unknown."""
        if not self.is_fresh(profile):
            num_workers = len(self._heartbeats.ready(profile))
            self._paces[profile] = _Pace(self._queue.mean_seconds(profile), num_workers, self._clock())
        pace = self._paces[profile]
        return line_seconds(pace.mean_seconds, position, pace.num_workers)
