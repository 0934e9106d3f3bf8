"""What a caller may ask of the networks and what they answer: frozen values, free of torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

ColourCorrection = Literal["wavelet", "adain", "none"]
Preset = Literal["fast", "balanced", "best"]
ALL_MODALITIES = ("segmentation", "depth", "edge", "dino", "text")
MAX_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """What an experiment (ablation, audit) puts in the place of a learned part; a service never sends one."""

    expert_weights: Mapping[str, float] | None = None  # one constant in [0, 1] per modality instead of the router's map
    temperature: float | None = None  # instead of tau_m(t) of Eq. 15; 1 is plain attention

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be above 0; 1 is plain attention")


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    """One request. `modalities` maps names to strengths in [0, 2]; 0 is off. Raises ValueError."""

    width: int | None = None  # exact output size [px]; both or neither, else `scale`
    height: int | None = None
    scale: float = 4.0  # in (0, 4]
    prompt: str = ""
    negative_prompt: str = ""  # empty: the profile's default; read only when cfg_scale is above 1
    preset: Preset = "balanced"  # fast: the coarse network alone; best: the profile's steps for its best picture
    num_steps: int | None = None  # None: the preset's; given, it overrides the preset
    cfg_scale: float | None = None  # None: the profile's default; 1: no classifier-free guidance
    seed: int = 0
    modalities: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ALL_MODALITIES, 1.0))
    color_correction: ColourCorrection | None = None  # None: the profile's default
    intervention: Intervention = Intervention()

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 4:
            raise ValueError(f"scale {self.scale} is outside (0, 4]; send a scale of at most 4")
        if (self.width is None) != (self.height is None):
            raise ValueError("send both width and height, or neither")
        if self.width is not None and self.height is not None and min(self.width, self.height) < 1:
            raise ValueError(f"output size {self.width} x {self.height} must be at least 1 x 1")
        if self.preset not in get_args(Preset):
            raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(get_args(Preset))}")
        if self.num_steps is not None and not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps {self.num_steps} is outside 1..{MAX_STEPS}")
        if self.cfg_scale is not None and not 1 <= self.cfg_scale <= 20:
            raise ValueError(f"cfg_scale {self.cfg_scale} is outside 1..20")
        for name, strength in self.modalities.items():
            if name not in ALL_MODALITIES:
                raise ValueError(f"unknown modality {name!r}; known: {', '.join(ALL_MODALITIES)}")
            if not 0 <= strength <= 2:
                raise ValueError(f"strength {strength} of {name} is outside 0..2")

    def strength(self, name: str) -> float:
        return self.modalities.get(name, 0.0)


@dataclass(frozen=True)
class ProgressEvent:
    stage: str  # coarse, perception, encoding, routing, denoising, output
    step: int  # denoising steps done in the current region
    num_steps: int
    fraction: float  # of the whole job, 0..1, never falling


OnProgress = Callable[[ProgressEvent], None]  # may raise to cancel


@dataclass(frozen=True, kw_only=True)
class UpscaleResult:
    sr_image: NDArray[np.float32]  # (H, W, 3) in [0, 1]
    # per LR patch: expert weights in [0, 1]; "uncertainty" >= 0, and beside a calibrated one "uncertainty_raw" (Eq. 13)
    maps: dict[str, NDArray[np.float32]]
    temperatures: dict[str, list[float]]  # "sigma" and one list per modality
    trust: dict[str, float | dict[str, float]]
    timings: dict[str, float]  # seconds per stage
    caption: str
    seed: int
    num_steps: int  # 0: no diffusion, the coarse network's image
    fusion: Literal["trained", "not installed", "skipped"]  # skipped: preset fast
    notes: tuple[str, ...] = ()  # what the run did otherwise than asked or published, and why; sentences
