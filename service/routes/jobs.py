"""/v1/jobs: one job's state, the list of jobs, cancel and delete."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from jobs import JobError
from service.access import CallerDep
from service.context import ContextDep
from service.problems import problem_responses
from service.schemas import JobList, JobView, view_job

router = APIRouter(tags=["jobs"])


@router.get("/v1/jobs/{job_id}", responses=problem_responses(404, 422))
def read_job(job_id: str, context: ContextDep, caller: CallerDep, response: Response) -> JobView:
    """How the job stands; for a finished one where its image and maps are, and what to make of them."""
    record = context.store.require_own(job_id, caller.id)
    response.headers["Cache-Control"] = "no-store"
    if not record.status.is_final:
        response.headers["Retry-After"] = "1"
    return view_job(context, record)


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


@router.delete(
    "/v1/jobs/{job_id}",
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
    # Files first: a record without files answers 410, files without a record would stay for ever.
    context.blobs.delete_prefix(job_id)
    if not context.store.delete(job_id) and context.store.get(job_id):
        raise JobError("job-not-finished", "The job runs again; cancel it first.", retry_after_seconds=1)
    return Response(status_code=204)
