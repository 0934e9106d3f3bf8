"""The sweep: deletes the files of jobs whose time is over, beside the requests."""

import anyio
import structlog
from starlette.concurrency import run_in_threadpool

from jobs import BlobStore, JobStore

SWEEP_SECONDS = 30.0


def sweep_once(store: JobStore, blobs: BlobStore) -> int:
    """Delete the files of every job that is due and mark it expired; how many there were.

    Several services may sweep at once: deleting twice is harmless, and marking is done by one of them.
    """
    num_expired = 0
    while job_ids := store.due():
        for job_id in job_ids:
            blobs.delete_prefix(job_id)
            num_expired += store.expire(job_id)
    return num_expired


async def sweep_for_ever(store: JobStore, blobs: BlobStore) -> None:
    """Sweep every `SWEEP_SECONDS` until cancelled; a failed sweep is logged and tried again."""
    while True:
        try:
            num_expired = await run_in_threadpool(sweep_once, store, blobs)
            if num_expired:
                structlog.get_logger().info("jobs_expired", count=num_expired)
        except Exception as error:  # Redis or the storage is away: the next sweep finds the same jobs
            structlog.get_logger().warning("sweep_failed", reason=str(error))
        await anyio.sleep(SWEEP_SECONDS)
