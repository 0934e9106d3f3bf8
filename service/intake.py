"""Intake: turning a screened upload into a queued job, once per Idempotency-Key."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from jobs import JobError, JobRecord, NewJob, input_key, new_job_id
from jobs.keys import idempotency_key
from jobs.store import queue_full
from service.caller import Caller
from service.context import Context
from service.uploads import Upload

MAX_IDEMPOTENCY_KEY_LENGTH = 255
IDEMPOTENCY_SECONDS = 86_400
# How long a repeated request waits for the first one, which holds the key, to create the job.
IN_FLIGHT_SECONDS = 3.0
T = TypeVar("T")


def accept(
    context: Context, caller: Caller, upload: Upload, request_id: str, key: str | None
) -> tuple[JobRecord, bool]:
    """The job of `upload`, and whether it is the one an earlier request with the same Idempotency-Key made.

    Only a new job is charged to the caller's quota of pixels.
    Raises JobError queue-full, quota-exceeded, idempotency-key-reused, storage-unavailable or storage-full.
    """

    def create(job_id: str) -> JobRecord:
        return _create(context, caller, upload, request_id, job_id)

    return once(context, caller, key, fingerprint([upload]), create, context.store.get)


def once(
    context: Context,
    caller: Caller,
    key: str | None,
    request: str,
    create: Callable[[str], T],
    find: Callable[[str], T | None],
) -> tuple[T, bool]:
    """What `create` makes under a new id, or what an earlier request with the same Idempotency-Key made.

    request: fingerprint of it. find: what was made under an id. Raises JobError bad-request, idempotency-key-reused,
    and what `create` raises.
    """
    if key is None:
        return create(new_job_id()), False
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        raise JobError("bad-request", f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters.")
    place = idempotency_key(hashlib.sha256(key.encode()).hexdigest(), caller.id)
    made_id = new_job_id()
    claim = json.dumps({"job_id": made_id, "fingerprint": request})
    if context.redis.set(place, claim, nx=True, ex=IDEMPOTENCY_SECONDS):
        try:
            return create(made_id), False
        except JobError:
            context.redis.delete(place)  # nothing was accepted: the caller may try the same again
            raise
    held = json.loads(context.redis.get(place) or claim)
    if held["fingerprint"] != request:
        raise JobError("idempotency-key-reused", "Use a new key, or send the request it was first used with.")
    made = _await(lambda: find(held["job_id"]))
    # Nothing: the first request died half-way. Its id is kept, so that the two still make one.
    return made or create(held["job_id"]), made is not None


def fingerprint(uploads: Sequence[Upload], kind: str = "") -> str:
    """The same for the same request: the options and the files in their order, and what is asked to be made of them."""
    text = kind + "".join(upload.options.model_dump_json() + upload.input.sha256 for upload in uploads)
    return hashlib.sha256(text.encode()).hexdigest()


def _await(find: Callable[[], T | None]) -> T | None:
    until = time.monotonic() + IN_FLIGHT_SECONDS
    while (made := find()) is None and time.monotonic() < until:
        time.sleep(0.05)
    return made


def describe_job(
    context: Context, caller: Caller, upload: Upload, request_id: str, job_id: str, batch_id: str | None = None
) -> NewJob:
    """The job that is to be made of an upload."""
    return NewJob(
        id=job_id,
        profile=upload.options.profile,
        options=upload.options,
        input=upload.input,
        owner=caller.id,
        request_id=request_id,
        batch_id=batch_id,
        ttl_seconds=upload.options.ttl_seconds or context.settings.ttl_seconds,
    )


def num_output_pixels(upload: Upload) -> int:
    """What an upload costs of its caller's quota."""
    return math.prod(upload.options.output_size(upload.input.width, upload.input.height))


def _create(context: Context, caller: Caller, upload: Upload, request_id: str, job_id: str) -> JobRecord:
    settings, profile = context.settings, upload.options.profile
    if not context.queue.has_room(profile, caller.id, 1, settings.max_queue_length):  # before the upload is written
        raise queue_full(profile, settings.max_queue_length)
    new_job = describe_job(context, caller, upload, request_id, job_id)
    num_pixels = num_output_pixels(upload)
    context.throttle.charge(caller, num_pixels)
    try:
        record = _store(context, new_job, upload.data)
    except BaseException:
        context.throttle.refund(caller, num_pixels)
        raise
    structlog.contextvars.bind_contextvars(job_id=job_id)
    note_accepted(context, upload)
    return record


def note_accepted(context: Context, upload: Upload) -> None:
    """Log an accepted upload and count its size."""
    profile, size = upload.options.profile, upload.input
    structlog.get_logger().info("job_accepted", profile=profile, width=size.width, height=size.height)
    context.metrics.input_megapixels.observe(size.width * size.height / 1e6)


def _store(context: Context, new_job: NewJob, data: bytes) -> JobRecord:
    context.blobs.put(input_key(new_job.id), data)
    try:
        record = context.store.create(new_job, max_queue_length=context.settings.max_queue_length)
        context.queue.enqueue(record)
    except BaseException:
        undo(context, new_job.id)
        raise
    return record


def undo(context: Context, job_id: str) -> None:
    """Leave nothing of a job that could not be accepted; what cannot be removed is logged."""
    try:
        context.blobs.delete_prefix(job_id)
        context.store.delete(job_id, force=True)
    except Exception:
        structlog.get_logger().exception("leftovers_of_a_refused_job", job_id=job_id)
