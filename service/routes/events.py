"""/v1/jobs/<id>/events: progress and state as server-sent events."""

import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from jobs import JobRecord
from service.access import CallerDep
from service.context import Context, ContextDep
from service.problems import problem_responses
from service.schemas import view_job

POLL_SECONDS = 0.2
KEEP_ALIVE_SECONDS = 15.0

router = APIRouter(tags=["jobs"])


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Events `status` and `progress`", "content": {"text/event-stream": {}}},
        **problem_responses(404, 422),
    },
)
async def listen(
    job_id: str, context: ContextDep, caller: CallerDep, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Events of one job until it ends: `status` when that changes, `progress` in between; data is the job.

    An event's id is the version of the record: who comes back with `Last-Event-ID` hears only what is newer.
    Each event is the whole state, so none that was missed has to be sent again.
    """
    record = await run_in_threadpool(context.store.require_own, job_id, caller.id)
    seen = int(last_event_id) if last_event_id and last_event_id.isdigit() else 0
    return StreamingResponse(
        _stream(context, record, seen),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # proxies must not hold events back
    )


async def _stream(context: Context, first: JobRecord, seen: int) -> AsyncIterator[str]:
    record: JobRecord | None = first
    told_status, quiet_since = None, time.monotonic()
    yield "retry: 2000\n\n"
    while record is not None:
        if record.version > seen:
            name = "progress" if record.status is told_status else "status"
            view = await run_in_threadpool(view_job, context, record)
            yield f"id: {record.version}\nevent: {name}\ndata: {view.model_dump_json()}\n\n"
            seen, told_status, quiet_since = record.version, record.status, time.monotonic()
        if record.status.is_final:
            return
        if time.monotonic() - quiet_since > KEEP_ALIVE_SECONDS:
            yield ": still here\n\n"
            quiet_since = time.monotonic()
        await anyio.sleep(POLL_SECONDS)
        record = await run_in_threadpool(context.store.get, first.id)
