"""Intake: turning a screened upload into a queued job, once per Idempotency-Key."""

import hashlib
import json
import math
import time

import structlog

from jobs import JobError, JobRecord, NewJob, input_key, new_job_id
from jobs.keys import idempotency_key
from jobs.store import QUEUE_FULL_RETRY_SECONDS
from service.caller import Caller
from service.context import Context
from service.uploads import Upload

MAX_IDEMPOTENCY_KEY_LENGTH = 255
IDEMPOTENCY_SECONDS = 86_400
# How long a repeated request waits for the first one, which holds the key, to create the job.
IN_FLIGHT_SECONDS = 3.0


def accept(
    context: Context, caller: Caller, upload: Upload, request_id: str, key: str | None
) -> tuple[JobRecord, bool]:
    """The job of `upload`, and whether it is the one an earlier request with the same Idempotency-Key made.

    Only a new job is charged to the caller's quota of pixels.
    Raises JobError queue-full, quota-exceeded, idempotency-key-reused, storage-unavailable or storage-full.
    """
    if key is None:
        return _create(context, caller, upload, request_id, new_job_id()), False
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        raise JobError("bad-request", f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters.")
    place = idempotency_key(hashlib.sha256(key.encode()).hexdigest(), caller.id)
    fingerprint = _fingerprint(upload)
    job_id = new_job_id()
    claim = json.dumps({"job_id": job_id, "fingerprint": fingerprint})
    if context.redis.set(place, claim, nx=True, ex=IDEMPOTENCY_SECONDS):
        try:
            return _create(context, caller, upload, request_id, job_id), False
        except JobError:
            context.redis.delete(place)  # nothing was accepted: the caller may try the same again
            raise
    held = json.loads(context.redis.get(place) or claim)
    if held["fingerprint"] != fingerprint:
        raise JobError("idempotency-key-reused", "Use a new key, or send the request it was first used with.")
    record = _await_record(context, held["job_id"])
    # No record: the first request died half-way. Its id is kept, so that the two still make one job.
    return record or _create(context, caller, upload, request_id, held["job_id"]), record is not None


def _fingerprint(upload: Upload) -> str:
    text = upload.options.model_dump_json() + upload.input.sha256
    return hashlib.sha256(text.encode()).hexdigest()


def _await_record(context: Context, job_id: str) -> JobRecord | None:
    until = time.monotonic() + IN_FLIGHT_SECONDS
    while (record := context.store.get(job_id)) is None and time.monotonic() < until:
        time.sleep(0.05)
    return record


def _create(context: Context, caller: Caller, upload: Upload, request_id: str, job_id: str) -> JobRecord:
    settings, profile = context.settings, upload.options.profile
    if context.queue.depth(profile) >= settings.max_queue_length:  # before the upload is written anywhere
        raise JobError(
            "queue-full",
            f"{settings.max_queue_length} jobs are waiting for '{profile}'. Try again later.",
            retry_after_seconds=QUEUE_FULL_RETRY_SECONDS,
        )
    new_job = NewJob(
        id=job_id,
        profile=profile,
        options=upload.options,
        input=upload.input,
        owner=caller.id,
        request_id=request_id,
        ttl_seconds=upload.options.ttl_seconds or settings.ttl_seconds,
    )
    num_pixels = math.prod(upload.options.output_size(upload.input.width, upload.input.height))
    context.throttle.charge(caller, num_pixels)
    try:
        record = _store(context, new_job, upload.data)
    except BaseException:
        context.throttle.refund(caller, num_pixels)
        raise
    structlog.contextvars.bind_contextvars(job_id=job_id)
    structlog.get_logger().info("job_accepted", profile=profile, width=upload.input.width, height=upload.input.height)
    context.metrics.input_megapixels.observe(upload.input.width * upload.input.height / 1e6)
    return record


def _store(context: Context, new_job: NewJob, data: bytes) -> JobRecord:
    context.blobs.put(input_key(new_job.id), data)
    try:
        record = context.store.create(new_job, max_queue_length=context.settings.max_queue_length)
        context.queue.enqueue(record)
    except BaseException:
        _undo(context, new_job.id)
        raise
    return record


def _undo(context: Context, job_id: str) -> None:
    try:
        context.blobs.delete_prefix(job_id)
        context.store.delete(job_id, force=True)
    except Exception:
        structlog.get_logger().exception("leftovers_of_a_refused_job", job_id=job_id)
