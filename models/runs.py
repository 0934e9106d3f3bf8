"""What a run of any profile needs beside its networks: stages and progress, images in and out, trust."""

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.requests import OnProgress, ProgressEvent, UpscaleOptions
from models.resize import resize


@dataclass
class Stopwatch:
    """Seconds per stage, and progress that is told to the caller."""

    on_progress: OnProgress | None
    num_regions: int
    num_steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    region: int = 0
    fraction: float = 0.0

    @contextmanager
    def stage(self, name: str, begin: float) -> Any:
        """Times a stage; `begin` is its place in the region's share of the work, 0..1."""
        self.tell(name, 0, begin)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def tell(self, stage: str, step: int, share: float) -> None:
        if self.on_progress is not None:
            # a step that is repeated with smaller tiles must not move the bar back
            self.fraction = max(self.fraction, min(1.0, (self.region + share) / self.num_regions))
            self.on_progress(ProgressEvent(stage, step, self.num_steps, self.fraction))


def check_image(lr_image: NDArray[np.float32]) -> None:
    """Raises ValueError when an image is not (H, W, 3), or empty."""
    if lr_image.ndim != 3 or lr_image.shape[2] != 3 or lr_image.size == 0:
        raise ValueError(f"lr_image has shape {lr_image.shape}; expected (H, W, 3), alpha is handled apart")


def to_tensor(lr_image: NDArray[np.float32], device: torch.device) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W)."""
    pixels = np.array(lr_image, dtype=np.float32, order="C")  # a copy: decoders may hand out read-only memory
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)


def to_answer(image: Tensor, lr_image: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(1, 3, H, W) resized to `size` (width, height) [px] as (H, W, 3) in [0, 1]; greyscale in, greyscale out."""
    if (image.shape[-1], image.shape[-2]) != size:
        image = resize(image, (size[1], size[0])).clamp(0, 1)
    array = image[0].permute(1, 2, 0).cpu().numpy()
    if (lr_image[..., 0] == lr_image[..., 1]).all() and (lr_image[..., 0] == lr_image[..., 2]).all():
        array = np.repeat(array.mean(2, keepdims=True), 3, 2)
    return np.ascontiguousarray(array)


def output_size(width: int, height: int, options: UpscaleOptions) -> tuple[int, int]:
    """(width, height) [px] of the answer to an image of width x height."""
    if options.width is not None and options.height is not None:
        return options.width, options.height
    return max(1, round(width * options.scale)), max(1, round(height * options.scale))


def measure_trust(
    sr: NDArray[np.float32], lr_image: NDArray[np.float32], uncertainty: NDArray[np.float32] | None
) -> dict[str, float | dict[str, float]]:
    """How well the answer agrees with what was sent [dB], and how the uncertainty is spread, where there is one."""
    small = resize(torch.from_numpy(sr).permute(2, 0, 1)[None], (lr_image.shape[0], lr_image.shape[1]))[0]
    error = float(((small.permute(1, 2, 0).clamp(0, 1).numpy() - lr_image) ** 2).mean())
    quantiles: dict[str, float] = {}
    if uncertainty is not None:
        values = map(float, np.quantile(uncertainty, (0.1, 0.5, 0.9, 0.99)))
        quantiles = dict(zip(("p10", "p50", "p90", "p99"), values, strict=True))
    return {
        "lr_consistency_psnr": round(min(100.0, -10 * math.log10(max(error, 1e-10))), 3),
        "uncertainty_quantiles": quantiles,
    }


def resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu or cuda") from error
