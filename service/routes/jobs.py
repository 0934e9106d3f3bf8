"""/v1/jobs: one job's state, the list of jobs, cancel and delete."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from jobs.store import check_own
from service.access import CallerDep, identify_and_poll
from service.context import ContextDep
from service.lifecycle import forget, replay
from service.problems import problem_responses
from service.schemas import JobList, JobView, job_url, view_job

router = APIRouter(tags=["jobs"])
JOB_PATH = "/v1/jobs/{job_id}"


@router.get(JOB_PATH, response_model=JobView, responses=problem_responses(404, 422))
async def read_job(request: Request, job_id: str) -> Response:
    """How the job stands; for a finished one where its image and maps are, and what to make of them."""
    # Finds the caller itself, with the job: `service.shortcut` calls this without what the router does before.
    caller, found = await identify_and_poll(request, job_id)
    record = check_own(found.record, caller.id)
    body = await request.app.state.polled.body(record, found.position)
    headers = {"Cache-Control": "no-store"} | ({} if record.status.is_final else {"Retry-After": "1"})
    return Response(body, media_type="application/json", headers=headers)


@router.get("/v1/jobs", responses=problem_responses(422))
def list_jobs(
    context: ContextDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(pattern=r"^\d{1,16}$", description="`next_cursor` of the page before.")] = None,
) -> JobList:
    """The caller's jobs that are not deleted or expired, newest first."""
    before = int(cursor) if cursor else None
    records = context.store.list_jobs(limit=limit + 1, before=before, owner=caller.id)
    page, has_more = records[:limit], len(records) > limit
    return JobList(
        jobs=[view_job(context, record) for record in page],
        next_cursor=str(page[-1].sequence) if has_more else None,
    )


@router.post(
    "/v1/jobs/{job_id}/replay",
    status_code=202,
    response_model=JobView,
    responses=problem_responses(404, 409, 410, 422, 429),
)
def replay_job(job_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """Queue a failed or canceled job again under its id, at the end of the line, while its upload is still stored."""
    structlog.contextvars.bind_contextvars(job_id=job_id)
    context.store.require_own(job_id, caller.id)
    record = replay(context, caller, job_id)
    headers = {"Location": job_url(job_id), "Cache-Control": "no-store"}
    return JSONResponse(view_job(context, record).model_dump(mode="json"), status_code=202, headers=headers)


@router.delete(
    JOB_PATH,
    status_code=202,
    response_model=JobView,
    responses={
        204: {"description": "The job was finished; it and its files are deleted"},
        **problem_responses(404, 409, 422),
    },
)
def delete_job(job_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """Cancel a queued or running job (202, and again 202 while it stops); delete a finished one (204)."""
    structlog.contextvars.bind_contextvars(job_id=job_id)
    record = context.store.require_own(job_id, caller.id)
    if not record.status.is_final:
        record = context.store.request_cancel(job_id)
        return JSONResponse(view_job(context, record).model_dump(mode="json"), status_code=202)
    forget(context, job_id)
    return Response(status_code=204)
