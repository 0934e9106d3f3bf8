"""The job record: everything GET /v1/jobs/<id> tells, as frozen values that travel as JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import PROBLEM_TYPE_PREFIX, JobError
from jobs.options import OutputFormat, UpscaleRequest


class JobStatus(StrEnum):
    """Where a job stands; it moves queued -> running -> a final one, and back from there only when it is replayed."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the job will not run any more."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class _Frozen(BaseModel):
    # "model" fields are ours; pydantic would reserve the word. JSON has no infinity: refused at this door.
    model_config = ConfigDict(frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Progress(_Frozen):
    """How far a run is: step of num_steps within a stage, and fraction in [0, 1] of the whole."""

    stage: str
    step: int = 0
    num_steps: int = 0
    fraction: float = Field(default=0.0, ge=0, le=1)


class InputInfo(_Frozen):
    """The uploaded file as it came; width and height in pixels, after the EXIF turn."""

    width: int
    height: int
    format: str
    bytes: int
    sha256: str


class ResultInfo(_Frozen):
    """The published file; sha256 of its bytes in hex."""

    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str


class PreviewInfo(_Frozen):
    """The preview of a run: width and height in pixels; fraction in (0, 1] of the image that is done coarsely."""

    width: int
    height: int
    fraction: float = Field(gt=0, le=1)


class MapInfo(_Frozen):
    """One map (h, w) summed up: weights in [0, 1], uncertainty >= 0; quantiles by name ("p50")."""

    mean: float
    quantiles: dict[str, float] = {}


class ModelInfo(_Frozen):
    """Which networks ran: sha256 of the checkpoint in hex."""

    profile: str
    checkpoint: str
    sha256: str
    num_parameters: int | None = None
    device: str | None = None
    dtype: str | None = None


class ErrorInfo(_Frozen):
    """Why a job failed, in the words of jobs.errors."""

    type: str
    title: str
    detail: str

    @classmethod
    def of(cls, error: JobError) -> "ErrorInfo":
        """The record of `error`."""
        return cls(type=error.type, title=error.title, detail=error.detail)

    @property
    def code(self) -> str:
        """The stable code inside the type URI."""
        return self.type.removeprefix(PROBLEM_TYPE_PREFIX)


class Trust(_Frozen):
    """How far the result can be believed.

    lr_consistency_psnr: dB between the result, shrunk back, and the input. uncertainty_quantiles: of its map.
    """

    lr_consistency_psnr: float | None = None
    uncertainty_quantiles: dict[str, float] = {}


class JobOutcome(_Frozen):
    """What a run adds to its record when it ends: a result and its maps, or an error."""

    result: ResultInfo | None = None
    output_format: OutputFormat | None = None
    maps: dict[str, MapInfo] = {}
    temperatures: dict[str, list[float]] = {}
    trust: Trust | None = None
    timings: dict[str, float] = {}
    model: ModelInfo | None = None
    fusion: str | None = None
    notes: tuple[str, ...] = ()
    caption: str | None = None
    seed: int | None = None
    error: ErrorInfo | None = None


class JobRecord(_Frozen):
    """One job. sequence: its place in the order of acceptance. version: grows with every change.

    attempt_id: the run that holds the job, and after its end the run whose files are the result. holder: its process.
    replays: how often it was queued again after its end; replayed_at: when last. preview: of the run of attempt_id.
    owner: id of the API key that made it; empty for an anonymous caller.
    """

    id: str
    status: JobStatus
    profile: str
    options: UpscaleRequest
    input: InputInfo
    owner: str = ""
    request_id: str = ""
    batch_id: str | None = None
    ttl_seconds: int
    sequence: int
    version: int
    created_at: datetime
    replayed_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    attempts: int = 0
    replays: int = 0
    attempt_id: str | None = None
    holder: str | None = None
    is_cancel_requested: bool = False
    progress: Progress | None = None
    preview: PreviewInfo | None = None
    outcome: JobOutcome = JobOutcome()


class NewJob(_Frozen):
    """What is known of a job when it is accepted, before it has a place in the queue. owner: as in JobRecord."""

    id: str
    profile: str
    options: UpscaleRequest
    input: InputInfo
    owner: str = ""
    request_id: str = ""
    batch_id: str | None = None
    ttl_seconds: int


def utc(seconds: float) -> datetime:
    """The moment `seconds` after 1970, with its zone."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def read_record(fields: Mapping[str, str]) -> JobRecord:
    """The record whose hash in Redis holds these fields."""
    base = NewJob.model_validate_json(fields["base"])
    moments: dict[str, Any] = {
        name: utc(float(fields[name]))
        for name in ("created_at", "replayed_at", "started_at", "finished_at", "expires_at")
        if name in fields
    }
    if "finished_at" not in moments:
        moments.pop("expires_at", None)  # until it ends this is only the time it is given up
    return JobRecord(
        **dict(base),
        **moments,
        status=JobStatus(fields["status"]),
        sequence=int(fields["sequence"]),
        version=int(fields["version"]),
        attempts=int(fields["attempts"]),
        replays=int(fields.get("replays", 0)),
        attempt_id=fields.get("attempt_id"),
        holder=fields.get("holder"),
        is_cancel_requested="cancel_requested" in fields,
        progress=Progress.model_validate_json(fields["progress"]) if "progress" in fields else None,
        preview=PreviewInfo.model_validate_json(fields["preview"]) if "preview" in fields else None,
        outcome=JobOutcome.model_validate_json(fields["outcome"]) if "outcome" in fields else JobOutcome(),
    )
