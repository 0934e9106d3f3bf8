"""Health and metrics: /livez, /readyz, /metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from jobs import JobError
from service.context import ContextDep
from service.problems import problem_responses
from service.schemas import HealthView

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> HealthView:
    """The process answers; it asks nothing of Redis or the workers."""
    return HealthView(status="alive")


@router.get("/readyz", responses=problem_responses())
def readyz(context: ContextDep) -> HealthView:
    """A job sent now would be run: Redis answers and a worker is ready for the default profile."""
    profile = context.settings.default_profile
    num_ready = len(context.heartbeats.ready(profile))
    if num_ready == 0:
        raise JobError("no-worker", f"No worker is ready for '{profile}'.", retry_after_seconds=5)
    return HealthView(status="ready", ready_workers=num_ready)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(context: ContextDep) -> Response:
    """Prometheus metrics of the API and the queue; answered also while Redis is away (`m3esr_redis_up 0`)."""
    return Response(generate_latest(context.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
