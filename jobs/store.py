"""Job records in Redis: one hash per job, changed only by the scripts of jobs.scripts."""

import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from jobs import keys, scripts
from jobs.batches import Batch
from jobs.connection import RedisClient
from jobs.errors import JobError
from jobs.estimate import plan_work, write_run
from jobs.line_scripts import CLASSES
from jobs.record import ErrorInfo, JobOutcome, JobRecord, JobStatus, NewJob, PreviewInfo, Progress, read_record

QUEUE_FULL_RETRY_SECONDS = 10
# A job that no worker ended in this time is given up, so that nothing is kept for ever.
GIVE_UP_SECONDS = 7 * 86_400
# How long an expired job still answers "expired" rather than "never heard of it".
TOMBSTONE_SECONDS = 86_400
# Longer than any job of a batch without a replay; how much longer is added by what its jobs ask for.
BATCH_SECONDS = GIVE_UP_SECONDS + TOMBSTONE_SECONDS
KEPT_DURATIONS = 32
# How long a run may go without renewing its lease before the job is given to another worker.
LEASE_SECONDS = 15.0


class Signal(StrEnum):
    """What a worker must do after it reported progress.

    CANCEL: stop and finish the job as canceled. FENCED: stop, publish nothing, another attempt holds the job.
    """

    CONTINUE = "continue"
    CANCEL = "cancel"
    FENCED = "fenced"


class JobStore:
    """Reads and changes job records; a late attempt changes nothing, a final job stays as it is.

    clock: seconds since 1970. Every method may raise the connection errors of redis-py (`REDIS_AWAY`).
    """

    def __init__(self, redis: RedisClient, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._create = redis.register_script(scripts.CREATE)
        self._begin = redis.register_script(scripts.BEGIN)
        self._renew = redis.register_script(scripts.RENEW)
        self._progress = redis.register_script(scripts.PROGRESS)
        self._preview = redis.register_script(scripts.PREVIEW)
        self._finish = redis.register_script(scripts.FINISH)
        self._release = redis.register_script(scripts.RELEASE)
        self._cancel = redis.register_script(scripts.CANCEL)
        self._replay = redis.register_script(scripts.REPLAY)
        self._delete = redis.register_script(scripts.DELETE)
        self._expire = redis.register_script(scripts.EXPIRE)

    # --- the caller's side

    def create(self, job: NewJob, *, max_queue_length: int) -> JobRecord:
        """Accept `job` as queued, at the end of its profile's line. Raises JobError queue-full."""
        self.create_all([job], max_queue_length=max_queue_length)
        return self.require(job.id)

    def create_all(self, jobs: Sequence[NewJob], *, max_queue_length: int, batch: Batch | None = None) -> None:
        """Accept all of `jobs` as queued in their order, and their batch; or none of them.

        They have one profile, owner and priority.
        Raises JobError queue-full when there is no room for all, ValueError when an id is taken.
        """
        now, profile, owner = self._clock(), jobs[0].profile, jobs[0].owner
        places = [*keys.line_keys(profile, owner), keys.index_key(owner), keys.EXPIRY, keys.SEQUENCE]
        places += [keys.batch_key(batch.id if batch else ""), *(keys.job_key(job.id) for job in jobs)]
        told = (batch.model_dump_json(), BATCH_SECONDS + jobs[0].ttl_seconds) if batch else ("", 0)
        described = [part for job in jobs for part in (job.id, job.model_dump_json())]
        args = [now, now + GIVE_UP_SECONDS, max_queue_length, *told, owner, CLASSES[jobs[0].options.priority]]
        sequence = self._create(keys=places, args=[*args, *described])
        if sequence == -1:
            raise ValueError(f"an id is taken: one of {', '.join(job.id for job in jobs)}")
        if sequence == 0:
            raise queue_full(profile, max_queue_length, len(jobs))

    def get(self, job_id: str) -> JobRecord | None:
        """The record, or None when there is none."""
        fields = self._redis.hgetall(keys.job_key(job_id)) if keys.is_job_id(job_id) else None
        return _read(fields) if fields else None

    def require(self, job_id: str) -> JobRecord:
        """The record. Raises JobError job-not-found."""
        record = self.get(job_id)
        if record is None:
            raise _not_found()
        return record

    def require_own(self, job_id: str, owner: str) -> JobRecord:
        """The record of a job of `owner`. Raises JobError job-not-found, for another's job in the very same words."""
        return check_own(self.get(job_id), owner)

    def request_cancel(self, job_id: str) -> JobRecord:
        """End a queued job at once, ask a running one to stop, leave a final one. Raises job-not-found."""
        record = self.require(job_id)
        now = self._clock()
        self._cancel(
            keys=[
                keys.job_key(job_id),
                *keys.line_keys(record.profile, record.owner),
                keys.EXPIRY,
                keys.COUNTERS,
                keys.webhook_key(job_id),
                keys.OUTBOX,
            ],
            args=[
                *(job_id, record.owner, now, now + record.ttl_seconds),
                counter_name(record.profile, JobStatus.CANCELED, ""),
            ],
        )
        return self.require(job_id)

    def replay(self, job_id: str, *, max_queue_length: int) -> JobRecord:
        """Queue a failed or canceled job again, at the end of the line, as if it had just been accepted.

        Its attempts begin anew; it counts as accepted once more, and once more when it ends. It must be enqueued.
        Raises JobError job-not-found, job-not-replayable, job-expired or queue-full.
        """
        record, now = self.require(job_id), self._clock()
        places = [*self._places(job_id, record.profile, record.owner)[:6], keys.SEQUENCE]
        sequence = self._replay(
            keys=[*places, keys.webhook_key(job_id), keys.OUTBOX, keys.DEAD_WEBHOOKS],
            args=[*in_line(record), now, now + GIVE_UP_SECONDS, max_queue_length],
        )
        if sequence == 0:
            raise queue_full(record.profile, max_queue_length)
        if sequence == -2 or record.status is JobStatus.EXPIRED:
            raise JobError("job-expired", "The time of the job is over and its upload is deleted.")
        if sequence == -1:
            raise JobError("job-not-replayable", f"The job is {record.status.value}.")
        if record.batch_id:
            self._redis.expire(keys.batch_key(record.batch_id), BATCH_SECONDS + record.ttl_seconds)
        return self.require(job_id)

    def delete(self, job_id: str, *, force: bool = False) -> bool:
        """Forget a final job (with force: any job); False when there is none, or it may still run."""
        record = self.get(job_id)
        if record is None:
            return False
        places = self._places(job_id, record.profile, record.owner)
        return bool(self._delete(keys=places, args=[job_id, record.owner, int(force)]))

    def list_jobs(self, *, limit: int, before: int | None = None, owner: str = "") -> list[JobRecord]:
        """Up to `limit` records of `owner`, newest first, of those accepted before the one with sequence `before`."""
        top = "+inf" if before is None else f"({before}"
        ids = self._redis.zrevrangebyscore(keys.index_key(owner), top, "-inf", start=0, num=limit)
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(keys.job_key(job_id.decode()))
        return [_read(fields) for fields in pipeline.execute() if fields]

    # --- the worker's side

    def begin_attempt(
        self, job_id: str, attempt_id: str, *, holder: str = "", lease_seconds: float = LEASE_SECONDS
    ) -> JobRecord | None:
        """Take a queued job for one run; None when it is final, gone, or held by another attempt.

        The lease ends after `lease_seconds` unless it is renewed; then the reaper takes the job back. holder: the
        worker process, so that its supervisor can hand back at once what it held when it died.
        """
        record = self.get(job_id)
        if record is None:
            return None
        return self._begin_run(record.profile, record.owner, job_id, (attempt_id, holder, lease_seconds))

    def begin_next(
        self, profile: str, attempt_id: str, *, holder: str = "", lease_seconds: float = LEASE_SECONDS
    ) -> JobRecord | None:
        """Take the job of the profile whose turn it is, as `begin_attempt` does; None when nobody waits."""
        while (found := self._next_in_line(profile)) is not None:
            # None: another worker took it meanwhile, or it was in line without a record; now it is not any more.
            if (begun := self._begin_run(profile, *found, (attempt_id, holder, lease_seconds))) is not None:
                return begun
        return None

    def _next_in_line(self, profile: str) -> tuple[str, str] | None:
        """Owner and id."""
        turns = self._redis.zrange(keys.turns_key(profile), 0, 0)
        if turns:
            owner = turns[0].decode()
            first = self._redis.zrange(keys.line_key(profile, owner), 0, 0)
            return owner, first[0].decode() if first else ""
        # Jobs of a version that knew no turns.
        first = self._redis.zrange(keys.waiting_key(profile), 0, 0)
        record = self.get(first[0].decode()) if first else None
        return (record.owner if record else "", first[0].decode()) if first else None

    def _begin_run(self, profile: str, owner: str, job_id: str, run: tuple[str, str, float]) -> JobRecord | None:
        (attempt_id, holder, lease_seconds), now = run, self._clock()
        is_held = self._begin(
            keys=[keys.job_key(job_id), *keys.line_keys(profile, owner), keys.LEASES],
            args=[job_id, owner, attempt_id, now, now + lease_seconds, holder],
        )
        return self.get(job_id) if is_held else None

    def renew_lease(self, job_id: str, attempt_id: str, *, lease_seconds: float = LEASE_SECONDS) -> bool:
        """Hold the job for `lease_seconds` from now; False when another attempt has it or it ended."""
        return bool(
            self._renew(
                keys=[keys.job_key(job_id), keys.LEASES], args=[job_id, attempt_id, self._clock() + lease_seconds]
            )
        )

    def report_progress(self, job_id: str, attempt_id: str, progress: Progress) -> Signal:
        """Tell how far the run is, and learn whether it may go on."""
        answer = self._progress(keys=[keys.job_key(job_id)], args=[attempt_id, progress.model_dump_json()])
        return Signal(answer.decode())

    def report_preview(self, job_id: str, attempt_id: str, preview: PreviewInfo) -> bool:
        """Tell that the run's preview is stored; False (nothing changed) when another attempt holds the job."""
        return bool(self._preview(keys=[keys.job_key(job_id)], args=[attempt_id, preview.model_dump_json()]))

    def is_cancel_requested(self, job_id: str) -> bool:
        """Whether the caller asked a running job to stop."""
        return bool(self._redis.hexists(keys.job_key(job_id), "cancel_requested"))

    def finish(self, job_id: str, attempt_id: str, status: JobStatus, outcome: JobOutcome) -> bool:
        """End the job as succeeded, failed or canceled; False (nothing changed) when another attempt has it.

        The count behind `m3esr_jobs_total` moves here and only here, so it counts every job once.
        """
        if status not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED):
            raise ValueError(f"a run cannot end as {status}")
        record = self.get(job_id)
        if record is None:
            return False
        reason = outcome.error.code if outcome.error else ""
        run = ""
        if status is JobStatus.SUCCEEDED:  # only these are measured
            run = write_run(plan_work(record.options, record.input.width, record.input.height), outcome.timings)
        now = self._clock()
        is_published = self._finish(
            keys=[
                keys.job_key(job_id),
                keys.EXPIRY,
                keys.COUNTERS,
                keys.durations_key(record.profile),
                keys.LEASES,
                keys.webhook_key(job_id),
                keys.OUTBOX,
            ],
            args=[
                job_id,
                attempt_id,
                status.value,
                outcome.model_dump_json(),
                now,
                now + record.ttl_seconds,
                counter_name(record.profile, status, reason),
                KEPT_DURATIONS,
                run,
            ],
        )
        return bool(is_published)

    def fail(self, job_id: str, attempt_id: str, error: JobError) -> bool:
        """End the job as failed for `error`; False when another attempt holds it."""
        return self.finish(job_id, attempt_id, JobStatus.FAILED, JobOutcome(error=ErrorInfo.of(error)))

    def release(self, job_id: str, attempt_id: str) -> bool:
        """Put the job back as the next to run; False when another attempt has it. It must be enqueued anew.

        The run is not charged to the job's attempts.
        """
        record = self.get(job_id)
        if record is None:
            return False
        places = [keys.job_key(job_id), *keys.line_keys(record.profile, record.owner), keys.LEASES]
        return bool(self._release(keys=places, args=[*in_line(record), attempt_id]))

    # --- housekeeping

    def due(self, *, limit: int = 100) -> list[str]:
        """Up to `limit` ids of jobs whose time is over; delete their files, then `expire` them."""
        raw_ids = self._redis.zrangebyscore(keys.EXPIRY, "-inf", self._clock(), start=0, num=limit)
        return [raw.decode() for raw in raw_ids]

    def expire(self, job_id: str) -> bool:
        """Mark a job whose time is over as expired, for a day, then forget it; False when it is not due."""
        record = self.get(job_id)
        profile, owner = (record.profile, record.owner) if record else ("", "")
        places = [*self._places(job_id, profile, owner), keys.webhook_key(job_id), keys.OUTBOX]
        return bool(self._expire(keys=places, args=[job_id, owner, self._clock(), TOMBSTONE_SECONDS]))

    def num_accepted(self) -> int:
        """How many jobs were ever accepted."""
        return int(self._redis.get(keys.SEQUENCE) or 0)

    def counters(self) -> dict[tuple[str, str, str], int]:
        """How many jobs ended, by (profile, state, reason); reason is an error code or empty."""
        counts = {}
        for name, count in self._redis.hgetall(keys.COUNTERS).items():
            profile, state, reason = name.decode().split("|")
            counts[profile, state, reason] = int(count)
        return counts

    def recoveries(self) -> dict[str, int]:
        """How often jobs were brought back, by cause: lease_expired, worker_died, dispatch_lost."""
        return {cause.decode(): int(count) for cause, count in self._redis.hgetall(keys.RECOVERIES).items()}

    def _places(self, job_id: str, profile: str, owner: str) -> list[str]:
        line, index = keys.line_keys(profile, owner), keys.index_key(owner)
        return [keys.job_key(job_id), *line, index, keys.EXPIRY, keys.LEASES]


def check_own(record: JobRecord | None, owner: str) -> JobRecord:
    """The record, which must be there and of `owner`. Raises JobError job-not-found, the same for both."""
    if record is None or record.owner != owner:
        raise _not_found()
    return record


def _not_found() -> JobError:
    return JobError("job-not-found", "No job has this id; it may have been deleted.")


def queue_full(profile: str, max_queue_length: int, num_jobs: int = 1) -> JobError:
    """The refusal of `num_jobs` for which the line has no room."""
    room = "" if num_jobs == 1 else f" There is no room for {num_jobs} at once."
    detail = f"At most {max_queue_length} jobs may wait for '{profile}'.{room} Try again later."
    return JobError("queue-full", detail, retry_after_seconds=QUEUE_FULL_RETRY_SECONDS)


def in_line(record: JobRecord) -> tuple[str, str, int]:
    """What scripts need to put a job in line: its id, its owner and the class of its priority."""
    return record.id, record.owner, CLASSES[record.options.priority]


def counter_name(profile: str, status: JobStatus, reason: str) -> str:
    """The field of `keys.COUNTERS` for jobs of a profile that ended so."""
    return f"{profile}|{status.value}|{reason}"


def _read(raw: Mapping[bytes, bytes]) -> JobRecord:
    return read_record({name.decode(): value.decode() for name, value in raw.items()})
