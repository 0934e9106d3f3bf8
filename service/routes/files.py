"""The files of a finished job: its image and its maps."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Header, Response

from jobs import JobError, JobRecord, JobStatus, map_key, preview_key, result_key
from service.access import CallerDep
from service.caller import Caller
from service.context import Context, ContextDep
from service.problems import problem_responses
from service.schemas import LinkView

PNG = "image/png"
JPEG = "image/jpeg"
NPY = "application/x-npy"

router = APIRouter(tags=["files"])

_WHY_NOT = {
    JobStatus.FAILED: "job-failed",
    JobStatus.CANCELED: "job-canceled",
    JobStatus.EXPIRED: "job-expired",
}


@router.get(
    "/v1/jobs/{job_id}/result",
    response_class=Response,
    responses={
        200: {"description": "The image", "content": {"image/*": {}}},
        304: {"description": "The caller has it already"},
        **problem_responses(404, 409, 410, 422),
    },
)
def read_result(
    job_id: str, context: ContextDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The image of a succeeded job; `ETag` is its SHA-256."""
    record = _require_succeeded(context, caller, job_id)
    result = record.outcome.result
    assert result is not None  # succeeded jobs have one
    headers = {"ETag": f'"{result.sha256}"', "Cache-Control": "private, max-age=3600"}
    if if_none_match and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    suffix = result.content_type.removeprefix("image/")
    headers["Content-Disposition"] = f'inline; filename="{job_id}.{suffix}"'
    data = _require_blob(context, result_key(job_id, _run_of(record)))
    return Response(data, media_type=result.content_type, headers=headers)


@router.get("/v1/jobs/{job_id}/result/link", responses=problem_responses(404, 409, 410, 422))
def link_result(job_id: str, context: ContextDep, caller: CallerDep, response: Response) -> LinkView:
    """A signed link to the image in the object store, on a server that gives them; who has it needs no key."""
    record = _require_succeeded(context, caller, job_id)
    seconds = context.settings.signed_url_seconds
    expires_at = datetime.now(UTC) + timedelta(seconds=seconds)  # before it is signed: it opens at least that long
    url = context.blobs.sign(result_key(job_id, _run_of(record)), seconds) if seconds else None
    if url is None:
        raise JobError("link-not-available", "Fetch the result from this API: there are no links to its storage.")
    response.headers["Cache-Control"] = "no-store"
    return LinkView(url=url, expires_at=expires_at)


@router.get(
    "/v1/jobs/{job_id}/maps/{name}",
    response_class=Response,
    responses={
        200: {"description": "A heat map, or float32 values (h, w)", "content": {PNG: {}, NPY: {}}},
        **problem_responses(404, 409, 410, 422),
    },
)
def read_map(
    job_id: str, name: str, context: ContextDep, caller: CallerDep, accept: Annotated[str, Header()] = "*/*"
) -> Response:
    """One map as a PNG heat map; with `.npy` behind the name or `Accept: application/x-npy` as values."""
    record = _require_succeeded(context, caller, job_id)
    bare, _, suffix = name.partition(".")
    if bare not in record.outcome.maps or suffix not in ("", "png", "npy"):
        has = ", ".join(record.outcome.maps) or "none"
        raise JobError("map-not-found", f"'{name}' is not a map of this job. It has: {has}.")
    is_npy = suffix == "npy" or (not suffix and NPY in accept)
    data = _require_blob(context, map_key(job_id, _run_of(record), bare, "npy" if is_npy else "png"))
    headers = {"Cache-Control": "private, max-age=3600", "Vary": "Accept"}
    return Response(data, media_type=NPY if is_npy else PNG, headers=headers)


@router.get(
    "/v1/jobs/{job_id}/preview",
    response_class=Response,
    responses={
        200: {"description": "The coarse image", "content": {JPEG: {}}},
        **problem_responses(404, 410, 422),
    },
)
def read_preview(job_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """The coarse network's image of the run, at most 1024 px a side; it grows region by region while the job runs."""
    record = context.store.require_own(job_id, caller.id)
    if record.status is JobStatus.EXPIRED:
        raise JobError("job-expired", "The files of the job are deleted.")
    data = context.blobs.get(preview_key(job_id, _run_of(record))) if record.preview else None
    if data is None:  # or the run it was of is over and swept, between the two questions
        retry_seconds = None if record.status.is_final else 1
        detail = f"The job is {record.status.value} and has no preview{'' if record.status.is_final else ' yet'}."
        raise JobError("preview-not-found", detail, retry_after_seconds=retry_seconds)
    return Response(data, media_type=JPEG, headers={"Cache-Control": "no-store"})


def _require_succeeded(context: Context, caller: Caller, job_id: str) -> JobRecord:
    record = context.store.require_own(job_id, caller.id)
    if not record.status.is_final:
        raise JobError("job-not-finished", f"The job is {record.status.value}.", retry_after_seconds=1)
    if code := _WHY_NOT.get(record.status):
        error = record.outcome.error
        raise JobError(code, error.detail if error else f"The job is {record.status.value}.")
    return record


def _run_of(record: JobRecord) -> str:
    """The run whose files are the published ones."""
    assert record.attempt_id is not None  # only a run can make a job succeed, or a preview
    return record.attempt_id


def _require_blob(context: Context, key: str) -> bytes:
    data = context.blobs.get(key)
    if data is None:  # the sweep deletes files a moment before it marks the record
        raise JobError("job-expired", "The file is deleted.")
    return data
