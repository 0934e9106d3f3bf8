"""An upscaler of the same interface as models.pipeline.Upscaler that enlarges by repeating pixels."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAP_NAMES = ("segmentation", "depth", "edge", "dino")


@dataclass(frozen=True)
class FakeEvent:
    stage: str
    step: int
    num_steps: int
    fraction: float


@dataclass(frozen=True)
class FakePreview:
    image: np.ndarray
    fraction: float


@dataclass(frozen=True)
class FakeResult:
    sr_image: np.ndarray
    maps: dict[str, np.ndarray]
    temperatures: dict[str, list[float]]
    trust: dict[str, Any]
    timings: dict[str, float]
    caption: str
    seed: int
    fusion: str = "trained"
    notes: tuple[str, ...] = ()


class FakeUpscaler:
    """on_step: called before each denoising step with its number; it may raise, cancel, or kill."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None, step_seconds: float = 0.0) -> None:
        self.on_step = on_step
        self.step_seconds = step_seconds
        self.num_runs = 0

    def upscale(
        self, lr_image: np.ndarray, options: Any, on_progress: Any = None, on_preview: Any = None
    ) -> FakeResult:
        self.num_runs += 1
        if on_preview is not None:
            on_preview(FakePreview(lr_image, 1.0))
        num_steps = options.num_steps or 4
        for step in range(1, num_steps + 1):
            if on_progress is not None:  # the warm-up has no listener, and takes no time
                self.on_step(step)
                time.sleep(self.step_seconds)
                on_progress(FakeEvent("denoising", step, num_steps, step / num_steps))
        rows = np.arange(options.height) * lr_image.shape[0] // options.height
        columns = np.arange(options.width) * lr_image.shape[1] // options.width
        names = [name for name in MAP_NAMES if options.modalities.get(name)]
        grid = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
        return FakeResult(
            sr_image=np.ascontiguousarray(lr_image[rows][:, columns]),
            maps={**dict.fromkeys(names, grid), "uncertainty": grid * 0.2},
            temperatures={"sigma": [1.0, 0.5], **{name: [0.4, 0.6] for name in names}},
            trust={"lr_consistency_psnr": float("inf"), "uncertainty_quantiles": {"p50": 0.1}},
            timings={"coarse": 0.01, "denoising": 0.02},
            caption="a picture",
            seed=options.seed,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "profile": "compact",
            "checkpoint": "fake.safetensors",
            "sha256": "f" * 64,
            "num_parameters": 0,
            "device": "cpu",
            "dtype": "float32",
        }
