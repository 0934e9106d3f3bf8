"""/v1/batches: several images with one request; how they stand, and the end of all of them."""

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from jobs import Batch, JobError
from service.access import CallerDep
from service.batches import accept_batch, find_records, max_files, screen_files
from service.caller import Caller
from service.context import Context, ContextDep
from service.lifecycle import forget
from service.problems import problem_responses
from service.routes.upscale import form_schema, key_header
from service.schemas import BatchView, batch_url, view_batch
from service.uploads import read_files, read_options
from service.webhooks import screen_webhook

router = APIRouter(tags=["batches"])

_OPENAPI = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema(is_batch=True)}}},
    "parameters": [key_header("batch")],
}


@router.post(
    "/v1/batches",
    status_code=202,
    response_model=BatchView,
    responses=problem_responses(400, 413, 422, 429),
    openapi_extra=_OPENAPI,
)
async def create_batch(request: Request, context: ContextDep, caller: CallerDep) -> JSONResponse:
    """Accept several images with the same options, each as a job: all of them, or none with a problem that says why.

    A problem with one file names it: `field` is `file[0]` for the first.
    """
    try:
        await run_in_threadpool(context.throttle.admit, caller)  # before the body is read
        batch, is_replayed = await _take_in(request, context, caller)
    except JobError as error:
        context.metrics.rejected.labels(error.code).inc()
        raise
    finally:
        request.scope["answer_headers"] = await run_in_threadpool(context.throttle.headers, caller)
    structlog.contextvars.bind_contextvars(batch_id=batch.id)
    headers = {"Location": batch_url(batch.id), "Cache-Control": "no-store"}
    if is_replayed:
        headers["Idempotency-Replayed"] = "true"
    records = await run_in_threadpool(find_records, context, batch)
    view = await run_in_threadpool(view_batch, context, batch, records)
    return JSONResponse(view.model_dump(mode="json"), status_code=202, headers=headers)


async def _take_in(request: Request, context: Context, caller: Caller) -> tuple[Batch, bool]:
    """As `accept_batch`."""
    async with context.waiting_room.seat(request) as seat:
        files, fields = await read_files(request, seat, max_files=max_files(context, caller))
        if len(files) > 1:
            await run_in_threadpool(context.throttle.admit, caller, len(files) - 1)
        options = read_options(fields, context.settings)
        await screen_webhook(options.webhook_url, context.settings, context.webhook_guard)
        uploads = await screen_files(context, files, options, seat)
        key, request_id = request.headers.get("idempotency-key"), request.scope["request_id"]
        return await run_in_threadpool(accept_batch, context, caller, uploads, request_id, key)


@router.get("/v1/batches/{batch_id}", responses=problem_responses(404, 422))
def read_batch(batch_id: str, context: ContextDep, caller: CallerDep, response: Response) -> BatchView:
    """How the jobs of the batch stand."""
    batch = context.batches.require_own(batch_id, caller.id)
    view = view_batch(context, batch, find_records(context, batch))
    response.headers["Cache-Control"] = "no-store"
    if not view.is_finished:
        response.headers["Retry-After"] = "1"
    return view


@router.delete(
    "/v1/batches/{batch_id}",
    status_code=202,
    response_model=BatchView,
    responses={
        204: {"description": "All jobs were finished; they and their files are deleted"},
        **problem_responses(404, 409, 422),
    },
)
def delete_batch(batch_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """Cancel the jobs that are not over (202, and again 202 while they stop); delete a finished batch whole (204)."""
    structlog.contextvars.bind_contextvars(batch_id=batch_id)
    batch = context.batches.require_own(batch_id, caller.id)
    records = find_records(context, batch)
    unfinished = [record for record in records if not record.status.is_final]
    if unfinished:
        for record in unfinished:
            context.store.request_cancel(record.id)
        view = view_batch(context, batch, find_records(context, batch))
        return JSONResponse(view.model_dump(mode="json"), status_code=202)
    for record in records:
        forget(context, record.id)
    context.batches.delete(batch)
    return Response(status_code=204)
