"""What the worker needs of models.pipeline, as types: a fake can stand in, and mypy sees something."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]


class ProgressEvent(Protocol):
    """One step of a run: step of num_steps within stage, fraction in [0, 1] of the whole."""

    @property
    def stage(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def fraction(self) -> float: ...


class Preview(Protocol):
    """The coarse image so far: image (h, w, 3) in [0, 1], valid during the call; fraction in (0, 1] of it is there."""

    @property
    def image(self) -> FloatImage: ...
    @property
    def fraction(self) -> float: ...


class UpscaleResult(Protocol):
    """What a run gives: see models.pipeline for shapes and ranges."""

    @property
    def sr_image(self) -> FloatImage: ...
    @property
    def maps(self) -> dict[str, FloatImage]: ...
    @property
    def temperatures(self) -> dict[str, list[float]]: ...
    @property
    def trust(self) -> dict[str, Any]: ...
    @property
    def timings(self) -> dict[str, float]: ...
    @property
    def caption(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def fusion(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class Upscaler(Protocol):
    """Preloaded networks of one profile."""

    def upscale(
        self,
        lr_image: FloatImage,
        options: Any,
        on_progress: Callable[[ProgressEvent], None] | None = None,
        on_preview: Callable[[Preview], None] | None = None,
    ) -> UpscaleResult: ...

    def describe(self) -> dict[str, Any]: ...
