"""Bringing jobs back: leases that ran out, workers that died, dispatches that were lost."""

import time
from collections.abc import Callable

from jobs import keys, scripts
from jobs.connection import RedisClient
from jobs.errors import JobError
from jobs.queue import JobQueue
from jobs.record import ErrorInfo, JobOutcome, JobStatus
from jobs.store import JobStore, counter_name, in_line

# A dispatch that is in no list for this long was lost between two commands: dequeue and registration, or
# acceptance and enqueueing. Well above what either takes, well below the 20 s in which a job runs again.
LOST_AFTER_SECONDS = 5.0


class Recovery:
    """What one reaper does in each round; several may run it at the same time without harm.

    clock: seconds since 1970. Every method may raise the connection errors of redis-py (`REDIS_AWAY`).
    """

    def __init__(
        self,
        redis: RedisClient,
        store: JobStore,
        queue: JobQueue,
        *,
        max_attempts: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._store = store
        self._queue = queue
        self._max_attempts = max_attempts
        self._clock = clock
        self._reclaim = redis.register_script(scripts.RECLAIM)
        self._missing: dict[str, tuple[float, int]] = {}  # by profile: since when dispatches are missing, and how many

    def reclaim_expired(self) -> dict[str, str]:
        """Take back every job whose lease ran out: job id -> "queued", "failed" or "canceled"."""
        raw_ids = self._redis.zrangebyscore(keys.LEASES, "-inf", self._clock())
        reclaimed = {raw.decode(): self.reclaim(raw.decode()) for raw in raw_ids}
        return {job_id: answer for job_id, answer in reclaimed.items() if answer != "held"}

    def reclaim(self, job_id: str) -> str:
        """Take one job back; "held" when its lease still holds. A queued one is the next to run."""
        record = self._store.get(job_id)
        if record is None:
            self._redis.zrem(keys.LEASES, job_id)
            return "held"
        error = JobError(
            "worker-lost", f"{record.attempts} workers died or hung while they ran this job; it is not tried again."
        )
        now = self._clock()
        answer = self._reclaim(
            keys=[
                keys.job_key(job_id),
                *keys.line_keys(record.profile, record.owner),
                keys.LEASES,
                keys.EXPIRY,
                keys.COUNTERS,
                keys.RECOVERIES,
                keys.webhook_key(job_id),
                keys.OUTBOX,
            ],
            args=[
                *in_line(record),
                now,
                self._max_attempts,
                JobOutcome(error=ErrorInfo.of(error)).model_dump_json(),
                now + record.ttl_seconds,
                counter_name(record.profile, JobStatus.FAILED, error.code),
                counter_name(record.profile, JobStatus.CANCELED, ""),
            ],
        ).decode()
        if answer == "queued":
            self._queue.enqueue(record)
        return str(answer)

    def end_leases_of(self, holder: str) -> list[str]:
        """End the leases of a process known to be dead, for the next round to reclaim; the jobs it held."""
        ended = []
        for raw in self._redis.zrange(keys.LEASES, 0, -1):
            job_id = raw.decode()
            if self._redis.hget(keys.job_key(job_id), "holder") == holder.encode():
                self._redis.zadd(keys.LEASES, {job_id: 0}, xx=True)  # 0 also tells RECLAIM why
                ended.append(job_id)
        return ended

    def dispatch_lost(self, profile: str) -> int:
        """Call workers for waiting jobs for which RQ has had no dispatch since `LOST_AFTER_SECONDS`; how many.

        A dispatch that a worker has taken and not yet used is missing for a moment; one too many does no harm.
        """
        now = self._clock()
        num_waiting = int(self._redis.zcard(keys.waiting_key(profile)))
        num_missing = num_waiting - int(self._redis.llen(keys.rq_list(profile)))
        if num_missing <= 0:
            self._missing.pop(profile, None)
            return 0
        since, fewest = self._missing.get(profile, (now, num_missing))
        self._missing[profile] = since, min(fewest, num_missing)
        if now - since < LOST_AFTER_SECONDS:
            return 0
        since, num_lost = self._missing.pop(profile)
        self._forget_taken(profile)
        for raw in self._redis.zrange(keys.waiting_key(profile), 0, num_lost - 1):
            self._queue.call_worker(profile, raw.decode())
        self._redis.hincrby(keys.RECOVERIES, "dispatch_lost", num_lost)
        return num_lost

    def _forget_taken(self, profile: str) -> None:
        """Drop the dispatches that workers took and died with: RQ would put them back too, a minute later.

        Also one that is taken at this very moment, which its worker does not miss.
        """
        self._redis.delete(keys.rq_intermediate_list(profile))
