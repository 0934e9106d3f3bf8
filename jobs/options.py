"""What a caller may ask of one upscaling, checked, and the output size that follows from it."""

import math
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobs.errors import JobError

ColorCorrection = Literal["wavelet", "adain", "none"]
Preset = Literal["fast", "balanced", "best"]
OutputFormat = Literal["png", "jpeg", "webp", "avif", "tiff"]
WebhookEvent = Literal["job.succeeded", "job.failed", "job.canceled"]
Priority = Literal["low", "normal", "high"]

WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)
MODALITIES = ("segmentation", "depth", "edge", "dino", "text")
MAX_SCALE = 4.0
MAX_SIDE = 65_535
_SIZE_FIELDS = ("scale", "width", "height", "megapixels")
CONTENT_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "avif": "image/avif",
    "tiff": "image/tiff",
}


def parse_modalities(text: str) -> dict[str, float]:
    """Strengths from "depth, edge:0.5" (a bare name is 1); "none" switches all of them off.

    Raises ValueError when an entry is not NAME or NAME:NUMBER, or a name is given twice.
    """
    if text.strip().lower() == "none":
        return {}
    strengths: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, separator, strength = (piece.strip() for piece in entry.partition(":"))
        if name in strengths:
            raise ValueError(f"'{name}' is given twice")
        try:
            strengths[name] = float(strength) if separator else 1.0
        except ValueError:
            raise ValueError(f"'{entry}' is not NAME or NAME:STRENGTH") from None
    if not strengths:
        raise ValueError("no modality is named; send 'none' to switch all of them off")
    return strengths


class UpscaleRequest(BaseModel):
    """The options of one job, as the form of POST /v1/upscale states them (the file apart)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    profile: str = Field(default="compact", description="Which networks to use; see GET /v1/profiles.")
    scale: float | None = Field(
        default=None,
        gt=1,
        le=MAX_SCALE,
        description="Output side over input side, above 1, at most 4; 4 when no other size is given.",
    )
    width: int | None = Field(default=None, ge=1, le=MAX_SIDE, description="Output width in pixels.")
    height: int | None = Field(default=None, ge=1, le=MAX_SIDE, description="Output height in pixels.")
    megapixels: float | None = Field(
        default=None, gt=0, le=1000, description="Output size in millions of pixels, aspect kept."
    )
    prompt: str = Field(default="", max_length=2000, description="What the picture shows; empty: captioned.")
    negative_prompt: str = Field(
        default="", max_length=2000, description="What it must not look like; empty: the profile's."
    )
    preset: Preset = Field(
        default="balanced",
        description="`fast`: the coarse network alone, no diffusion, no weight maps; `best`: more steps if they help.",
    )
    num_steps: int | None = Field(
        default=None, ge=1, le=100, description="Denoising steps, whatever the preset; absent: the preset's."
    )
    cfg_scale: float | None = Field(
        default=None, ge=1, le=20, description="Guidance scale; absent: the profile's default."
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Same seed and request, same picture.")
    modalities: dict[str, float] = Field(
        default_factory=lambda: dict.fromkeys(MODALITIES, 1.0),
        description="Strength 0 to 2 per modality; absent or 0 is off.",
    )
    color_correction: ColorCorrection | None = Field(
        default=None, description="How colours are held to the input; absent: the profile's default."
    )
    output_format: OutputFormat = Field(default="png", description="File format of the result.")
    quality: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Quality of jpeg, webp and avif; absent: the format's default.",
    )
    metadata: Literal["keep", "strip"] = Field(default="keep", description="Keep or strip EXIF and ICC profile.")
    maps: bool = Field(default=True, description="Return the weight and uncertainty maps.")
    ttl_seconds: int | None = Field(
        default=None,
        ge=60,
        le=30 * 86_400,
        description="How long the finished job is kept; absent: the server's.",
    )
    priority: Priority = Field(
        default="normal",
        description="Place among your own waiting jobs; jobs of other API keys are passed by no priority.",
    )
    webhook_url: str | None = Field(
        default=None, max_length=2048, description="Told when the job ends, by a signed POST (Standard Webhooks)."
    )
    webhook_events: tuple[WebhookEvent, ...] | None = Field(
        default=None, min_length=1, description="Ends that `webhook_url` is told of; absent: every one."
    )

    @field_validator("webhook_events", mode="before")
    @classmethod
    def _read_events(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        return value

    @field_validator("modalities", mode="before")
    @classmethod
    def _read_modalities(cls, value: object) -> object:
        return parse_modalities(value) if isinstance(value, str) else value

    @field_validator("modalities")
    @classmethod
    def _check_modalities(cls, value: dict[str, float]) -> dict[str, float]:
        for name, strength in value.items():
            if name not in MODALITIES:
                raise ValueError(f"'{name}' is not one of {', '.join(MODALITIES)}")
            if not 0 <= strength <= 2:
                raise ValueError(f"the strength of '{name}' is {strength:g}; it must lie in 0..2")
        return value

    @model_validator(mode="before")
    @classmethod
    def _default_scale(cls, values: object) -> object:
        if isinstance(values, dict) and all(values.get(name) is None for name in _SIZE_FIELDS):
            return {**values, "scale": MAX_SCALE}
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        ways = {
            "scale": self.scale is not None,
            "width/height": self.width is not None or self.height is not None,
            "megapixels": self.megapixels is not None,
        }
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}, not both")
        if self.webhook_events and not self.webhook_url:
            raise ValueError("webhook_events needs a webhook_url")
        return self

    def output_size(self, lr_width: int, lr_height: int) -> tuple[int, int]:
        """Width and height of the output in pixels, for an input (turned upright) of that size in pixels.

        Raises JobError invalid-option when a side would shrink or grow more than `MAX_SCALE` times.
        """
        if self.megapixels is not None:
            ratio = math.sqrt(self.megapixels * 1e6 / (lr_width * lr_height))
            size, field = (_scaled(lr_width, ratio), _scaled(lr_height, ratio)), "megapixels"
        elif self.width is not None:
            height = self.height or _scaled(lr_height, self.width / lr_width)
            size, field = (self.width, height), "width"
        elif self.height is not None:
            size, field = (_scaled(lr_width, self.height / lr_height), self.height), "height"
        else:
            scale = self.scale or MAX_SCALE
            return _scaled(lr_width, scale), _scaled(lr_height, scale)
        smallest, largest = (lr_width, lr_height), (int(lr_width * MAX_SCALE), int(lr_height * MAX_SCALE))
        for side in (0, 1):
            if not smallest[side] <= size[side] <= largest[side]:
                raise JobError(
                    "invalid-option",
                    f"{lr_width}x{lr_height} cannot become {size[0]}x{size[1]}: a side may grow up to "
                    f"{MAX_SCALE:g} times, so ask for {smallest[0]}x{smallest[1]} to "
                    f"{largest[0]}x{largest[1]}.",
                    field=field,
                )
        return size


def _scaled(side: int, ratio: float) -> int:
    # Half up, not Python's half to even: 5 px at 1.5 is 8 px for every odd side, as callers compute it.
    return max(1, math.floor(side * ratio + 0.5))
