"""POST /v1/upscale: accept an image and its options as a job."""

import asyncio
import contextlib
import re
import time
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from jobs import JobError, JobRecord, UpscaleRequest
from jobs.options import WEBHOOK_EVENTS
from jobs.store import check_own
from service.access import CallerDep
from service.caller import Caller
from service.context import Context, ContextDep
from service.intake import MAX_IDEMPOTENCY_KEY_LENGTH, accept
from service.problems import problem_responses
from service.schemas import JobView, job_url
from service.uploads import Upload, read_form, read_options, screen_image
from service.webhooks import screen_webhook

MAX_WAIT_SECONDS = 60
# Who waits is woken by the end of the job; this is how late the answer is when the word was lost.
WAIT_POLL_SECONDS = 0.25
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE)

router = APIRouter(tags=["jobs"])


def form_schema(*, is_batch: bool = False) -> dict[str, Any]:
    """The form as OpenAPI tells it: one `file`, or in a batch several."""
    # One source for the fields: the model that checks them. A form carries modalities as text.
    schema = UpscaleRequest.model_json_schema()
    properties = {name: _as_form_field(field) for name, field in schema["properties"].items()}
    properties["modalities"] = {
        "type": "string",
        "title": "Modalities",
        "default": "segmentation,depth,edge,dino,text",
        "description": "Names, or name:strength with 0 to 2, comma-separated; `none` switches all off.",
    }
    properties["webhook_events"] = {
        "type": "string",
        "title": "Webhook Events",
        "description": f"Of {', '.join(WEBHOOK_EVENTS)}, comma-separated; absent: all.",
    }
    image: dict[str, Any] = {
        "type": "string",
        "format": "binary",
        "description": "PNG, JPEG, WebP, AVIF, TIFF or HEIC.",
    }
    form: dict[str, Any] = {"type": "object", "additionalProperties": False}
    if is_batch:
        files = {"type": "array", "minItems": 1, "items": image}
        return form | {"required": ["file"], "properties": {"file": files, **properties}}
    url = {
        "type": "string",
        "title": "Url",
        "description": "Of the image, instead of `file`, where the server allows it.",
    }
    return form | {
        "oneOf": [{"required": ["file"]}, {"required": ["url"]}],
        "properties": {"file": image, "url": url, **properties},
    }


def _as_form_field(field: dict[str, Any]) -> dict[str, Any]:
    # Absent is how a form says null, so the null branch and a null default go.
    branches = [branch for branch in field.get("anyOf", []) if branch.get("type") != "null"]
    plain = {name: value for name, value in field.items() if name != "anyOf"}
    if plain.get("default", 0) is None:
        del plain["default"]
    return {**(branches[0] if len(branches) == 1 else {}), **plain}


def _header(name: str, description: str, **limits: int) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string", **limits}, "description": description}


def key_header(made: str) -> dict[str, Any]:
    """The Idempotency-Key as OpenAPI tells it; made: what a request leads to."""
    words = f"The same key and request lead to the same {made}."
    return _header("Idempotency-Key", words, minLength=1, maxLength=MAX_IDEMPOTENCY_KEY_LENGTH)


_OPENAPI = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}},
    "parameters": [
        _header("Prefer", "`wait=N` (at most 60): answer when the job is done, or after N seconds (RFC 7240)."),
        key_header("job"),
    ],
}


@router.post(
    "/v1/upscale",
    status_code=202,
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "Done within `Prefer: wait`"},
        **problem_responses(400, 413, 422, 429),
    },
    openapi_extra=_OPENAPI,
)
async def upscale(request: Request, context: ContextDep, caller: CallerDep) -> Response:
    """Accept an image. The answer names the job; poll its `url`, or listen to its `/events`."""
    try:
        await run_in_threadpool(context.throttle.admit, caller)  # before the body is read
        record, is_replayed = await _take_in(request, context, caller)
    except JobError as error:
        context.metrics.rejected.labels(error.code).inc()
        raise
    finally:
        request.scope["answer_headers"] = await run_in_threadpool(context.throttle.headers, caller)
    structlog.contextvars.bind_contextvars(job_id=record.id)
    headers = {"Location": job_url(record.id), "Cache-Control": "no-store"}
    if is_replayed:
        headers["Idempotency-Replayed"] = "true"
    wait_seconds = _asked_wait(request)
    if wait_seconds is not None:
        headers["Preference-Applied"] = f"wait={wait_seconds}"
        record = await _wait_until_final(context, record, wait_seconds)
    body = await request.app.state.polled.body(record, None)
    status = 200 if wait_seconds is not None and record.status.is_final else 202
    return Response(body, status_code=status, media_type="application/json", headers=headers)


async def _take_in(request: Request, context: Context, caller: Caller) -> tuple[JobRecord, bool]:
    """As `accept`. The upload is gone from memory when it returns, however long the answer is waited for."""
    async with context.waiting_room.seat(request) as seat:
        data, fields = await read_form(request, context.fetcher, seat)
        options = read_options(fields, context.settings)
        await screen_webhook(options.webhook_url, context.settings, context.webhook_guard)
        info = await screen_image(data, options, context.settings, seat)
        upload, key = Upload(data=data, input=info, options=options), request.headers.get("idempotency-key")
        return await run_in_threadpool(accept, context, caller, upload, request.scope["request_id"], key)


def _asked_wait(request: Request) -> int | None:
    found = _WAIT.search(",".join(request.headers.getlist("prefer")))
    return min(int(found[1]), MAX_WAIT_SECONDS) if found else None


async def _wait_until_final(context: Context, record: JobRecord, wait_seconds: int) -> JobRecord:
    until = time.monotonic() + wait_seconds
    with context.ends.watch(record.id) as ended:
        while True:
            ended.clear()  # before it is asked: an end after the question is heard
            record = check_own((await context.polls.ask(record.id, None)).record, record.owner)
            left = until - time.monotonic()
            if record.status.is_final or left <= 0:
                return record
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, WAIT_POLL_SECONDS)):
                    await ended.wait()
