"""What becomes of a job that is over when its caller asks: it is replayed, or forgotten."""

import structlog

from jobs import JobError, JobRecord, input_key
from service.caller import Caller
from service.context import Context


def replay(context: Context, caller: Caller, job_id: str) -> JobRecord:
    """Queue a failed or canceled job again.

    It counts as a request of the caller; its pixels were charged when it was accepted.
    Raises JobError rate-limited, job-not-found, job-not-replayable, job-expired or queue-full.
    """
    context.throttle.admit(caller)
    # Asked before it is queued: the sweep deletes files only of jobs whose time is over, which the store refuses.
    is_stored = context.blobs.exists(input_key(job_id))
    if not is_stored and context.store.require(job_id).status.is_final:
        raise JobError("job-expired", "The upload of the job is deleted.")
    record = context.store.replay(job_id, max_queue_length=context.settings.max_queue_length)
    context.queue.enqueue(record)
    structlog.get_logger().info("job_replayed", profile=record.profile, replays=record.replays)
    return record


def forget(context: Context, job_id: str) -> None:
    """Delete a job that is over, and its files. Raises JobError job-not-finished when it was replayed meanwhile."""
    # Files first: a record without files answers 410, files without a record would stay for ever.
    context.blobs.delete_prefix(job_id)
    if not context.store.delete(job_id) and context.store.get(job_id):
        raise JobError("job-not-finished", "The job runs again; cancel it first.", retry_after_seconds=1)
