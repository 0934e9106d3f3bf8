"""From a network's answer to what is published: heat maps, image file, and the record's outcome."""

import hashlib
import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jobs import (
    CONTENT_TYPES,
    PROFILES,
    JobError,
    JobOutcome,
    MapInfo,
    ModelInfo,
    ResultInfo,
    Trust,
    UpscaleRequest,
)
from models import heatmap, imageio
from worker.failures import as_decode_error
from worker.upscaler import FloatImage, UpscaleResult

# Maps have one value per 16 px: beyond this side a larger heat map only takes longer to draw and to load.
MAX_MAP_SIDE = 1024
QUANTILES = (10, 50, 90, 99)
# An exact match has infinite PSNR, which JSON cannot say; 16-bit rounding alone ends near this.
MAX_PSNR = 100.0


@dataclass(frozen=True)
class RenderedMap:
    """One map ready to publish. png: heat map with the result's aspect. npy: float32 (h, w), npy format."""

    png: bytes
    npy: bytes
    info: MapInfo


def decode(data: bytes, max_pixels: int) -> Any:
    """The `models.imageio.DecodedImage` of an upload. Raises JobError for whatever is wrong with it."""
    try:
        decoded = imageio.decode_image(data, max_pixels=max_pixels)
    except imageio.ImageDecodeError as error:
        raise as_decode_error(error) from error
    # Decoding may hand out a read-only view, which torch warns of.
    return replace(decoded, pixels=np.require(decoded.pixels, requirements=["C", "W"]))


def upscale_options(request: UpscaleRequest, lr_width: int, lr_height: int) -> Any:
    """The network's options for `request`. Raises JobError invalid-option on a size or preset out of reach."""
    from models.pipeline import UpscaleOptions  # here, so that this module can be read without torch

    PROFILES[request.profile].steps_of(request)
    width, height = request.output_size(lr_width, lr_height)
    return UpscaleOptions(
        width=width,
        height=height,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        preset=request.preset,
        num_steps=request.num_steps,
        cfg_scale=request.cfg_scale,
        seed=request.seed,
        modalities={name: strength for name, strength in request.modalities.items() if strength > 0},
        color_correction=request.color_correction,
    )


def render_maps(result: UpscaleResult) -> dict[str, RenderedMap]:
    """All maps of a run by name."""
    height, width = result.sr_image.shape[:2]
    return {name: render_map(name, values, (width, height)) for name, values in result.maps.items()}


def render_map(name: str, values: FloatImage, size: tuple[int, int]) -> RenderedMap:
    """One map (h, w) for a result of `size` (width, height).

    Weights are drawn on their whole range 0 to 1, so that jobs compare; uncertainty has no upper bound and is
    drawn up to its 99th percentile.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    info = summarise(values)
    high = max(info.quantiles["p99"], 1e-6) if name.startswith("uncertainty") else 1.0
    shrink = min(1.0, MAX_MAP_SIDE / max(size))
    drawn = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return RenderedMap(png=heatmap.render_heat_map(values, drawn, 0.0, high), npy=file.getvalue(), info=info)


def summarise(values: FloatImage) -> MapInfo:
    """Mean and quantiles of a map. Raises ValueError when a value is not finite: such a map means nothing."""
    if not np.isfinite(values).all():
        raise ValueError("a map holds values that are not finite")
    points = np.percentile(values, QUANTILES)
    quantiles = {f"p{q}": round(float(point), 6) for q, point in zip(QUANTILES, points, strict=True)}
    return MapInfo(mean=round(float(values.mean(dtype=np.float64)), 6), quantiles=quantiles)


def encode(result: UpscaleResult, request: UpscaleRequest, source: Any) -> bytes:
    """The image file asked for; alpha, bit depth, profile and metadata follow `source`, the decoded input."""
    try:
        return bytes(
            imageio.encode_image(
                result.sr_image,
                request.output_format,
                request.quality,
                source,
                request.metadata == "keep",
            )
        )
    except imageio.ImageEncodeError as error:
        raise JobError(
            "upscale-failed", f"The result does not fit the format {request.output_format}: {error}."
        ) from error


def build_outcome(
    result: UpscaleResult,
    request: UpscaleRequest,
    image: bytes,
    maps: dict[str, RenderedMap],
    timings: dict[str, float],
    description: dict[str, Any],
) -> JobOutcome:
    """What the finished record tells; timings in seconds per stage, description: of the upscaler."""
    height, width = result.sr_image.shape[:2]
    return JobOutcome(
        result=ResultInfo(
            width=width,
            height=height,
            content_type=CONTENT_TYPES[request.output_format],
            bytes=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        ),
        output_format=request.output_format,
        maps={name: rendered.info for name, rendered in maps.items()},
        temperatures={name: [float(value) for value in row] for name, row in result.temperatures.items()},
        trust=_trust(result.trust),
        timings={stage: round(seconds, 4) for stage, seconds in timings.items()},
        model=model_info(description),
        fusion=result.fusion,
        notes=result.notes,
        caption=result.caption,
        seed=result.seed,
    )


def model_info(description: dict[str, Any]) -> ModelInfo:
    """The record's words for what `Upscaler.describe` tells."""
    return ModelInfo(
        profile=str(description["profile"]),
        checkpoint=str(description["checkpoint"]),
        sha256=str(description["sha256"]),
        num_parameters=description.get("num_parameters"),
        device=_text(description.get("device")),
        dtype=_text(description.get("dtype")),
    )


def _trust(trust: dict[str, Any]) -> Trust:
    psnr = float(trust.get("lr_consistency_psnr", math.nan))
    return Trust(
        lr_consistency_psnr=None if math.isnan(psnr) else min(psnr, MAX_PSNR),
        uncertainty_quantiles={name: float(value) for name, value in trust.get("uncertainty_quantiles", {}).items()},
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
