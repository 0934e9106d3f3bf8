"""The public shapes: what the API's JSON says of jobs, profiles and health."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from jobs import (
    Batch,
    InputInfo,
    JobRecord,
    JobStatus,
    MapInfo,
    ModelInfo,
    PreviewInfo,
    Progress,
    ResultInfo,
    Trust,
    UpscaleRequest,
    WebhookOutcome,
    WebhookState,
)
from jobs.options import WEBHOOK_EVENTS, WebhookEvent
from jobs.record import ErrorInfo
from service.context import Context


class SizeView(BaseModel):
    """A size in pixels, and in millions of them."""

    width: int
    height: int
    megapixels: float


class EstimateView(BaseModel):
    """What a job would give and take. regions and tiles: how the networks would cut the image.

    seconds: its run; wait_seconds: until that begins. Both are null while too little is known.
    """

    input: SizeView
    output: SizeView
    num_regions: int
    num_tiles: int
    seconds: float | None
    wait_seconds: float | None


class QueueView(BaseModel):
    """Place in line: position 0 is next. eta_seconds until done; null while too little is known."""

    position: int
    eta_seconds: float | None


class ResultView(ResultInfo):
    """The published image and where it is fetched."""

    url: str


class LinkView(BaseModel):
    """An address outside this API that opens a result without a key until it expires."""

    url: str
    expires_at: datetime


class PreviewView(PreviewInfo):
    """The coarse image so far, a JPEG, and where it is fetched."""

    url: str


class MapView(MapInfo):
    """One map: url is a heat map (PNG), npy_url the float32 values (h, w)."""

    url: str
    npy_url: str


class WebhookView(BaseModel):
    """The webhook of a job. state: null when the job ended in none of its events, or it is forgotten.

    attempts: tries since the job ended or the webhook was replayed. last_status: HTTP status of the last try.
    """

    url: str
    events: tuple[WebhookEvent, ...]
    state: WebhookState | None
    attempts: int
    last_outcome: WebhookOutcome | None
    last_status: int | None
    next_attempt_at: datetime | None


class JobView(BaseModel):
    """A job as its caller sees it; times are UTC."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    url: str
    status: JobStatus
    profile: str
    progress: Progress | None
    queue: QueueView | None
    preview: PreviewView | None
    cancel_requested: bool
    options: UpscaleRequest
    input: InputInfo
    created_at: datetime
    replayed_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    timings: dict[str, float] = Field(description="Seconds per stage.")
    result: ResultView | None
    maps: dict[str, MapView] = Field(description="Expert weights in [0, 1] per modality, uncertainty (>= 0).")
    temperatures: dict[str, list[float]] = Field(description="`sigma`, and each modality's temperature at it.")
    trust: Trust | None
    model: ModelInfo | None
    fusion: str | None = Field(
        description="`trained`; `not installed` or `skipped` (preset fast): then there are no weight maps."
    )
    notes: list[str] = Field(description="What the run did otherwise than asked or published, and why.")
    caption: str | None
    seed: int
    error: ErrorInfo | None
    attempts: int
    replays: int
    batch_id: str | None
    webhook: WebhookView | None


class JobList(BaseModel):
    """One page of jobs, newest first; next_cursor is null on the last page."""

    jobs: list[JobView]
    next_cursor: str | None


class BatchView(BaseModel):
    """Jobs accepted together, in the order of their files. counts: how many of them are in each status."""

    id: str
    url: str
    created_at: datetime
    is_finished: bool
    counts: dict[JobStatus, int]
    jobs: list[JobView]


class LicenceView(BaseModel):
    """Terms of one part of a profile."""

    part: str
    name: str
    url: str
    is_commercial_use_allowed: bool


class ProfileView(BaseModel):
    """One profile. is_served: this server offers it. num_ready_workers: that would take a job now.

    is_installed: its weights come with the package, or a worker has loaded them. reason: if not, how to install it.
    """

    name: str
    title: str
    description: str
    is_default: bool
    is_installed: bool
    is_served: bool
    reason: str
    num_ready_workers: int
    queue_depth: int
    max_scale: float
    num_steps: int
    best_num_steps: int
    cfg_scale: float
    color_correction: str
    runs_on: str
    licences: list[LicenceView]


class LimitsView(BaseModel):
    """What this server takes."""

    max_upload_bytes: int
    max_input_pixels: int
    max_output_pixels: int
    max_queue_length: int
    max_batch_files: int
    ttl_seconds: int


class ProfileList(BaseModel):
    """The catalogue of this server."""

    profiles: list[ProfileView]
    limits: LimitsView


class HealthView(BaseModel):
    """`alive` or `ready`; ready_workers counts those of the default profile."""

    status: str
    ready_workers: int | None = None


def job_url(job_id: str) -> str:
    """Where a job is polled."""
    return f"/v1/jobs/{job_id}"


def batch_url(batch_id: str) -> str:
    """Where a batch is polled."""
    return f"/v1/batches/{batch_id}"


def view_batch(context: Context, batch: Batch, records: Sequence[JobRecord]) -> BatchView:
    """The public shape of `batch`, of which `records` still exist."""
    counts = Counter(record.status for record in records)
    return BatchView(
        id=batch.id,
        url=batch_url(batch.id),
        created_at=batch.created_at,
        is_finished=all(record.status.is_final for record in records),
        counts={status: counts[status] for status in JobStatus},
        jobs=[view_job(context, record) for record in records],
    )


def view_job(context: Context, record: JobRecord, position: int | None = None) -> JobView:
    """The public shape of `record`. position: in line, where it is known; else looked up when the job waits."""
    outcome, url = record.outcome, job_url(record.id)
    has_files = record.status is JobStatus.SUCCEEDED
    result = outcome.result if has_files else None
    maps = outcome.maps if has_files else {}
    return JobView(
        id=record.id,
        url=url,
        status=record.status,
        profile=record.profile,
        progress=record.progress,
        queue=_view_queue(context, record, position),
        preview=PreviewView(url=f"{url}/preview", **dict(record.preview)) if record.preview else None,
        cancel_requested=record.is_cancel_requested,
        options=record.options,
        input=record.input,
        created_at=record.created_at,
        replayed_at=record.replayed_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        expires_at=record.expires_at,
        timings=outcome.timings,
        result=ResultView(url=f"{url}/result", **dict(result)) if result else None,
        maps={
            name: MapView(url=f"{url}/maps/{name}", npy_url=f"{url}/maps/{name}.npy", **dict(info))
            for name, info in maps.items()
        },
        temperatures=outcome.temperatures,
        trust=outcome.trust,
        model=outcome.model,
        fusion=outcome.fusion,
        notes=list(outcome.notes),
        caption=outcome.caption,
        seed=record.options.seed if outcome.seed is None else outcome.seed,
        error=outcome.error,
        attempts=record.attempts,
        replays=record.replays,
        batch_id=record.batch_id,
        webhook=view_webhook(context, record),
    )


def view_webhook(context: Context, record: JobRecord) -> WebhookView | None:
    """What the job's end is told to, and how far that is; None when it asked for no webhook."""
    if record.options.webhook_url is None:
        return None
    webhook = context.outbox.get(record.id)
    return WebhookView(
        url=record.options.webhook_url,
        events=record.options.webhook_events or WEBHOOK_EVENTS,
        state=webhook.state if webhook else None if record.status.is_final else WebhookState.PENDING,
        attempts=webhook.attempts if webhook else 0,
        last_outcome=webhook.last_outcome if webhook else None,
        last_status=webhook.last_status if webhook else None,
        next_attempt_at=webhook.next_attempt_at if webhook else None,
    )


def _view_queue(context: Context, record: JobRecord, position: int | None) -> QueueView | None:
    if record.status is not JobStatus.QUEUED:
        return None
    if position is None:
        position = context.queue.position(record)
    if position is None:  # it left the line between the two questions
        return None
    return QueueView(position=position, eta_seconds=context.paces.eta_seconds(record.profile, position))
