"""The queue: gives RQ one dispatch for each job, and answers who waits where without RQ's clean-up.

A dispatch is the right to run one job: whichever is next in line when a worker takes it (`JobStore.begin_next`). So
RQ's list, which knows neither owners nor priorities, decides nothing, and dispatches need only be enough.
"""

import secrets
import time
from collections.abc import Callable
from typing import Any

from rq import Queue
from rq.serializers import JSONSerializer

from jobs import keys, line_scripts
from jobs.connection import RedisClient
from jobs.estimate import Work, expected_seconds, run_duration
from jobs.record import JobRecord

# RQ's own copy of a job is of no use once it ran: the record is ours. Its default keeps failures for a year.
RQ_FAILURE_TTL_SECONDS = 600


class JobQueue:
    """One RQ queue per profile. clock: seconds since 1970."""

    def __init__(
        self,
        redis: RedisClient,
        *,
        job_timeout_seconds: int = 3_600,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._job_timeout_seconds = job_timeout_seconds
        self._clock = clock
        self._position = redis.register_script(line_scripts.POSITION)

    def rq_queue(self, profile: str) -> Any:
        """The profile's `rq.Queue`, with the JSON serializer (RQ's default is pickle)."""
        return Queue(keys.queue_name(profile), connection=self._redis, serializer=JSONSerializer)

    def enqueue(self, record: JobRecord) -> None:
        """Call a worker of its profile for a job that was put in line; only an id travels."""
        self.call_worker(record.profile, record.id)

    def call_worker(self, profile: str, job_id: str) -> None:
        """One more dispatch. job_id: of the job that it is for, which may be another than it is used for.

        Each is an RQ job of its own: RQ's clean-up after a late run must not take a newer dispatch along.
        """
        self.rq_queue(profile).enqueue_call(
            keys.TASK_NAME,
            args=(job_id,),
            job_id=dispatch_id(job_id),
            timeout=self._job_timeout_seconds,
            result_ttl=0,
            failure_ttl=RQ_FAILURE_TTL_SECONDS,
            description=keys.TASK_NAME,
        )

    def position(self, record: JobRecord) -> int | None:
        """How many jobs run before this one if nobody comes or goes; None when it does not wait.

        O(log n) in the waiting jobs, and one look at each owner who waits.
        """
        position = self._position(
            keys=[keys.line_key(record.profile, record.owner), keys.turns_key(record.profile)],
            args=[keys.line_key(record.profile, ""), record.owner, record.id],
        )
        return None if position is None else int(position)

    def eta_seconds(self, record: JobRecord, position: int, num_workers: int) -> float | None:
        """Expected seconds until this waiting job is done, from the last runs; None while unknown."""
        return line_seconds(self.mean_seconds(record.profile), position, num_workers)

    def run_seconds(self, profile: str, work: Work) -> float | None:
        """Expected seconds that a run with that work takes, from the last runs; None while unknown."""
        seconds = expected_seconds(work, self._last_runs(profile))
        return None if seconds is None else round(seconds, 2)

    def wait_seconds(self, profile: str, num_workers: int) -> float | None:
        """Expected seconds until a job accepted now begins, at most; None while unknown or without a worker.

        A running job counts as a whole one, though part of it is done.
        """
        if num_workers < 1:
            return None
        # The leases are those of all profiles, but a worker has one at most.
        num_running = min(int(self._redis.zcard(keys.LEASES)), num_workers)
        num_rounds = (self.depth(profile) + num_running) // num_workers
        mean_seconds = self.mean_seconds(profile) if num_rounds else 0.0
        return None if mean_seconds is None else round(mean_seconds * num_rounds, 1)

    def has_room(self, profile: str, owner: str, num_jobs: int, max_queue_length: int) -> bool:
        """Whether that many jobs of the owner would be accepted now.

        A full line still takes a single job of an owner who has none in it: nobody's jobs keep others out.
        """
        if self.depth(profile) + num_jobs <= max_queue_length:
            return True
        return num_jobs == 1 and not self._redis.exists(keys.line_key(profile, owner))

    def depth(self, profile: str) -> int:
        """How many jobs wait."""
        return int(self._redis.zcard(keys.waiting_key(profile)))

    def oldest_age_seconds(self, profile: str) -> float:
        """How long the job that was accepted first has waited, in seconds; 0 when nobody waits."""
        first = self._redis.zrange(keys.waiting_key(profile), 0, 0)
        if not first:
            return 0.0
        moments = self._redis.hmget(keys.job_key(first[0].decode()), "replayed_at", "created_at")
        queued_at = next((moment for moment in moments if moment), None)
        return max(0.0, self._clock() - float(queued_at)) if queued_at else 0.0

    def mean_seconds(self, profile: str) -> float | None:
        """How long the last runs took on average; None while there were none."""
        durations = [run_duration(run) for run in self._last_runs(profile)]
        return sum(durations) / len(durations) if durations else None

    def _last_runs(self, profile: str) -> list[str]:
        return [raw.decode() for raw in self._redis.lrange(keys.durations_key(profile), 0, -1)]


def line_seconds(mean_seconds: float | None, position: int, num_workers: int) -> float | None:
    """Expected seconds until the job at `position` is done where runs take `mean_seconds`; None while unknown."""
    if mean_seconds is None or num_workers < 1:
        return None
    # The workers drain the line side by side, and the job at hand still has to run itself.
    return round(mean_seconds * (position // num_workers + 1), 1)


def dispatch_id(job_id: str) -> str:
    """A new RQ job id for one dispatch of `job_id`."""
    return f"{job_id}-{secrets.token_hex(4)}"
