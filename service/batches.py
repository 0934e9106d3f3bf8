"""Batches: several files of one request, accepted as jobs all together or not at all."""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from jobs import Batch, JobError, JobRecord, NewJob, UpscaleRequest, input_key, new_job_id
from jobs.store import queue_full
from service import intake
from service.caller import Caller
from service.context import Context
from service.uploads import FilePart, Upload, check_not_empty, screen_image
from service.waiting import Seat

MAX_TOLD_NAME_LENGTH = 80


def max_files(context: Context, caller: Caller) -> int:
    """How many files one batch of the caller may have: more could never be accepted."""
    settings = context.settings
    limits = (settings.max_batch_files, settings.max_queue_length, caller.requests_per_minute)
    return min(limit for limit in limits if limit)


async def screen_files(
    context: Context, files: Sequence[FilePart], options: UpscaleRequest, seat: Seat
) -> list[Upload]:
    """The uploads, once it is sure that a worker can read each. Raises JobError as `screen_image`, naming the file."""
    uploads = []
    for index, file in enumerate(files):
        try:
            check_not_empty(file)
            info = await screen_image(file.data, options, context.settings, seat)
        except JobError as error:
            if error.is_retryable:  # no fault of this file's
                raise
            name = file.name[:MAX_TOLD_NAME_LENGTH]
            field = f"file[{index}]" if error.field in (None, "file") else error.field
            raise JobError(error.code, f"file[{index}] ('{name}'): {error.detail}", field=field) from error
        uploads.append(Upload(data=file.data, input=info, options=options))
    return uploads


def accept_batch(
    context: Context, caller: Caller, uploads: Sequence[Upload], request_id: str, key: str | None
) -> tuple[Batch, bool]:
    """The batch of `uploads`, and whether it is the one an earlier request with the same Idempotency-Key made.

    Raises JobError queue-full, quota-exceeded, idempotency-key-reused, storage-unavailable or storage-full.
    """

    def create(batch_id: str) -> Batch:
        return _create(context, caller, uploads, request_id, batch_id)

    def find(batch_id: str) -> Batch | None:
        batch = context.batches.get(batch_id)
        return batch if batch and _records(context, batch) else None

    return intake.once(context, caller, key, intake.fingerprint(uploads, "batch"), create, find)


def find_records(context: Context, batch: Batch) -> list[JobRecord]:
    """The jobs of the batch that still exist, in the order of its files.

    Raises JobError batch-not-found when none is left: then the batch is forgotten too.
    """
    records = _records(context, batch)
    if not records:
        raise JobError("batch-not-found", "All jobs of the batch are deleted.")
    return records


def _records(context: Context, batch: Batch) -> list[JobRecord]:
    records = [record for record in map(context.store.get, batch.job_ids) if record is not None]
    if not records:
        context.batches.delete(batch)
    return records


def _create(context: Context, caller: Caller, uploads: Sequence[Upload], request_id: str, batch_id: str) -> Batch:
    settings, profile = context.settings, uploads[0].options.profile
    # before a file is written anywhere
    if not context.queue.has_room(profile, caller.id, len(uploads), settings.max_queue_length):
        raise queue_full(profile, settings.max_queue_length, len(uploads))
    new_jobs = [intake.describe_job(context, caller, upload, request_id, new_job_id(), batch_id) for upload in uploads]
    batch = Batch(id=batch_id, owner=caller.id, created_at=datetime.now(UTC), job_ids=tuple(job.id for job in new_jobs))
    num_pixels = sum(map(intake.num_output_pixels, uploads))
    context.throttle.charge(caller, num_pixels)
    try:
        _store(context, batch, new_jobs, uploads)
    except BaseException:
        context.throttle.refund(caller, num_pixels)
        raise
    for job, upload in zip(new_jobs, uploads, strict=True):
        with structlog.contextvars.bound_contextvars(job_id=job.id, batch_id=batch_id):
            intake.note_accepted(context, upload)
    return batch


def _store(context: Context, batch: Batch, new_jobs: Sequence[NewJob], uploads: Sequence[Upload]) -> None:
    try:
        for job, upload in zip(new_jobs, uploads, strict=True):
            context.blobs.put(input_key(job.id), upload.data)
        context.store.create_all(new_jobs, max_queue_length=context.settings.max_queue_length, batch=batch)
        for job in new_jobs:
            context.queue.enqueue(context.store.require(job.id))
    except BaseException:
        _undo(context, batch)
        raise


def _undo(context: Context, batch: Batch) -> None:
    for job_id in batch.job_ids:
        intake.undo(context, job_id)
    try:
        context.batches.delete(batch)
    except Exception:  # it ends by itself, and has no jobs
        structlog.get_logger().exception("leftovers_of_a_refused_batch", batch_id=batch.id)
