"""POST /v1/estimate: what an upscale would give and take, without an image."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from jobs import UpscaleRequest, plan_work
from service.context import ContextDep
from service.problems import problem_responses
from service.schemas import EstimateView, SizeView
from service.uploads import check_offer, check_sizes

MAX_SIDE = 1_000_000

router = APIRouter(tags=["jobs"])


class InputSize(BaseModel):
    """The size of an image in pixels, as it is seen: after the EXIF turn."""

    model_config = ConfigDict(extra="forbid")

    width: int = Field(ge=1, le=MAX_SIDE)
    height: int = Field(ge=1, le=MAX_SIDE)


class EstimateRequest(BaseModel):
    """An image that is not sent, and the options of POST /v1/upscale."""

    model_config = ConfigDict(extra="forbid")

    input: InputSize
    options: UpscaleRequest = Field(default_factory=UpscaleRequest)


@router.post("/v1/estimate", responses=problem_responses(400, 422))
def estimate(asked: EstimateRequest, context: ContextDep) -> EstimateView:
    """The size and the expected time of a result. No job is made; what an upscale would refuse is refused here too."""
    options = asked.options
    if "profile" not in options.model_fields_set:
        options = options.model_copy(update={"profile": context.settings.default_profile})
    check_offer(options, context.settings)
    width, height = check_sizes(options, asked.input.width, asked.input.height, context.settings)
    work = plan_work(options, asked.input.width, asked.input.height)
    num_workers = len(context.heartbeats.ready(options.profile))
    return EstimateView(
        input=_view_size(asked.input.width, asked.input.height),
        output=_view_size(width, height),
        num_regions=work.num_regions,
        num_tiles=work.num_tiles,
        seconds=context.queue.run_seconds(options.profile, work),
        wait_seconds=context.queue.wait_seconds(options.profile, num_workers),
    )


def _view_size(width: int, height: int) -> SizeView:
    return SizeView(width=width, height=height, megapixels=round(width * height / 1e6, 6))
