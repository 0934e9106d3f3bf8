"""/v1/jobs/<id>/webhook: sending the webhook of a job again."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from jobs import JobError
from service.access import CallerDep
from service.context import ContextDep
from service.problems import problem_responses
from service.schemas import WebhookView, view_webhook

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/jobs/{job_id}/webhook/replay",
    status_code=202,
    response_model=WebhookView,
    responses=problem_responses(404, 409, 422),
)
def replay_webhook(job_id: str, context: ContextDep, caller: CallerDep) -> JSONResponse:
    """Send the webhook of a job that is over again, at once, with the same `webhook-id` and the whole schedule."""
    record = context.store.require_own(job_id, caller.id)
    if record.options.webhook_url is not None and not record.status.is_final:
        raise JobError("job-not-finished", f"The job is {record.status.value}.", retry_after_seconds=1)
    context.outbox.replay(job_id)
    view = view_webhook(context, record)
    assert view is not None  # only a job with a webhook_url can have one to replay
    return JSONResponse(view.model_dump(mode="json"), status_code=202)
