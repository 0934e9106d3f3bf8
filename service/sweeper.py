"""The sweep: deletes the files of jobs whose time is over, and files that no job owns, beside the requests."""

import time
from datetime import UTC, datetime, timedelta

import anyio
import structlog
from starlette.concurrency import run_in_threadpool

from jobs import BlobStore, JobStore

SWEEP_SECONDS = 30.0
# Looking for orphans lists the whole storage, so it is done more rarely.
ORPHAN_SWEEP_SECONDS = 1800.0
# An upload lies in the storage before its job exists, for as long as one request takes at most.
ORPHAN_AGE = timedelta(hours=1)


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


def sweep_orphans(store: JobStore, blobs: BlobStore, now: datetime | None = None) -> int:
    """Delete the files of jobs that do not exist: a service died between storing an upload and accepting it.

    How many there were.
    """
    old = blobs.jobs_untouched_since((now or datetime.now(UTC)) - ORPHAN_AGE)
    orphans = [job_id for job_id in old if store.get(job_id) is None]
    for job_id in orphans:
        blobs.delete_prefix(job_id)
    return len(orphans)


async def sweep_for_ever(store: JobStore, blobs: BlobStore) -> None:
    """Sweep every `SWEEP_SECONDS` until cancelled; a failed sweep is logged and tried again."""
    log, orphans_at = structlog.get_logger(), time.monotonic()
    while True:
        try:
            if num_expired := await run_in_threadpool(sweep_once, store, blobs):
                log.info("jobs_expired", count=num_expired)
            if time.monotonic() >= orphans_at:
                orphans_at = time.monotonic() + ORPHAN_SWEEP_SECONDS
                if num_orphans := await run_in_threadpool(sweep_orphans, store, blobs):
                    log.info("orphans_deleted", count=num_orphans)
        except Exception as error:  # Redis or the storage is away: the next sweep finds the same jobs
            log.warning("sweep_failed", reason=str(error))
        await anyio.sleep(SWEEP_SECONDS)
