"""The reaper: beside each worker, once a second, one of them brings back what was lost."""

import threading
import time
from collections.abc import Callable

import structlog
from redis.exceptions import LockError
from redis.lock import Lock

from jobs import PROFILES, REDIS_AWAY, JobQueue, JobStore, Recovery, Settings, connect
from jobs.keys import REAPER_LOCK

ROUND_SECONDS = 1.0
LOCK_SECONDS = 5.0
# After Redis was away the holders of leases, who could not renew them either, get this long to do so.
QUIET_SECONDS = 5.0
log = structlog.get_logger(__name__)


class Reaper:
    """Takes expired leases back and dispatches lost jobs anew, while it holds the lock that one reaper holds."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        redis = connect(settings.redis_url)
        queue = JobQueue(redis, job_timeout_seconds=settings.job_timeout_seconds)
        self.recovery = Recovery(redis, JobStore(redis), queue, max_attempts=settings.max_attempts)
        self._lock = Lock(redis, REAPER_LOCK, timeout=LOCK_SECONDS, blocking=False, thread_local=False)
        self._clock = clock
        self._quiet_until = float("-inf")
        self._is_redis_away = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def __enter__(self) -> "Reaper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(timeout=5)

    def round(self) -> bool:
        """One round; False when another reaper has the lock, or Redis is away."""
        try:
            if not self._holds_lock():
                return False
            if self._clock() >= self._quiet_until:
                for job_id, answer in self.recovery.reclaim_expired().items():
                    log.warning("lease_expired", job_id=job_id, became=answer)
            for profile in PROFILES:
                if num_lost := self.recovery.dispatch_lost(profile):
                    log.warning("dispatch_lost", profile=profile, num_lost=num_lost)
        except REDIS_AWAY as error:
            self._quiet_until = self._clock() + QUIET_SECONDS
            if not self._is_redis_away:
                log.warning("redis_away", reason=str(error))
            self._is_redis_away = True
            return False
        self._is_redis_away = False
        return True

    def _holds_lock(self) -> bool:
        try:
            if self._lock.owned():
                return bool(self._lock.reacquire())
        except LockError:
            pass  # it ran out between the two questions
        return bool(self._lock.acquire())

    def _run(self) -> None:
        while not self._is_over.wait(ROUND_SECONDS):
            try:
                self.round()
            except Exception:
                log.exception("reaper_failed")  # the next round is a second away; jobs must not wait for a restart
