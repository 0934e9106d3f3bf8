"""Bringing jobs back: leases that ran out, workers that died, dispatches that were lost."""

import time
from collections.abc import Callable

from jobs import keys, scripts
from jobs.connection import RedisClient
from jobs.errors import JobError
from jobs.queue import JobQueue, dispatched_job
from jobs.record import ErrorInfo, JobOutcome, JobStatus
from jobs.store import JobStore, counter_name

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
        self._missing_since: dict[str, dict[str, float]] = {}  # by profile

    def reclaim_expired(self) -> dict[str, str]:
        """Take back every job whose lease ran out: job id -> "queued", "failed" or "canceled"."""
        raw_ids = self._redis.zrangebyscore(keys.LEASES, "-inf", self._clock())
        reclaimed = {raw.decode(): self.reclaim(raw.decode()) for raw in raw_ids}
        return {job_id: answer for job_id, answer in reclaimed.items() if answer != "held"}

    def reclaim(self, job_id: str) -> str:
        """Take one job back; "held" when its lease still holds. A queued one is dispatched at the front."""
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
                keys.waiting_key(record.profile),
                keys.LEASES,
                keys.EXPIRY,
                keys.COUNTERS,
                keys.RECOVERIES,
                keys.webhook_key(job_id),
                keys.OUTBOX,
            ],
            args=[
                job_id,
                now,
                self._max_attempts,
                JobOutcome(error=ErrorInfo.of(error)).model_dump_json(),
                now + record.ttl_seconds,
                counter_name(record.profile, JobStatus.FAILED, error.code),
                counter_name(record.profile, JobStatus.CANCELED, ""),
            ],
        ).decode()
        if answer == "queued":
            self._queue.enqueue(record, at_front=True)
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

    def dispatch_lost(self, profile: str) -> list[str]:
        """Dispatch anew the waiting jobs that no list of RQ has held for `LOST_AFTER_SECONDS`; their ids."""
        now = self._clock()
        waiting = [raw.decode() for raw in self._redis.zrange(keys.waiting_key(profile), 0, -1)]
        listed = {dispatched_job(raw.decode()) for raw in self._redis.lrange(keys.rq_list(profile), 0, -1)}
        known = self._missing_since.get(profile, {})
        missing = {job_id: known.get(job_id, now) for job_id in waiting if job_id not in listed}
        self._missing_since[profile] = missing
        lost = [job_id for job_id, since in missing.items() if now - since >= LOST_AFTER_SECONDS]
        for job_id in lost:
            del missing[job_id]
            self._forget_taken(profile, job_id)
            record = self._store.get(job_id)
            if record is not None and record.status is JobStatus.QUEUED:
                self._queue.enqueue(record, at_front=True)
                self._redis.hincrby(keys.RECOVERIES, "dispatch_lost", 1)
        return lost

    def _forget_taken(self, profile: str, job_id: str) -> None:
        """Drop a dispatch that a worker took and died with: RQ would put it back too, a minute later."""
        intermediate = keys.rq_intermediate_list(profile)
        for raw in self._redis.lrange(intermediate, 0, -1):
            if dispatched_job(raw.decode()) == job_id:
                self._redis.lrem(intermediate, 0, raw)
