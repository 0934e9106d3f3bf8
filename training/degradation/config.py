"""Numbers of the second-order degradation (Real-ESRGAN, arXiv 2107.10833) and the recipes built from them."""

import math
from dataclasses import dataclass, field, replace

Range = tuple[float, float]

KERNEL_KINDS = (
    "iso",
    "aniso",
    "generalized_iso",
    "generalized_aniso",
    "plateau_iso",
    "plateau_aniso",
)


@dataclass(frozen=True)
class KernelConfig:
    """How a blur kernel is drawn; the same for both stages except for the sigma range."""

    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    padded_size: int = 21
    """Kernels stacked in one batch are zero-padded to this size."""
    sinc_probability: float = 0.1
    kind_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """In the order of `KERNEL_KINDS`; sums to one."""
    rotation_range: Range = (-math.pi, math.pi)
    generalized_beta_range: Range = (0.5, 4.0)
    plateau_beta_range: Range = (1.0, 2.0)
    small_sinc_cutoff_range: Range = (math.pi / 3, math.pi)
    """Cutoff in radians per pixel for kernels under 13 pixels, where a lower one would not fit."""
    large_sinc_cutoff_range: Range = (math.pi / 5, math.pi)


@dataclass(frozen=True)
class StageConfig:
    """One stage: blur, resize, noise, JPEG. Noise sigmas are in 8-bit steps."""

    blur_probability: float
    blur_sigma_range: Range
    resize_probabilities: tuple[float, float, float]
    """Up, down, keep."""
    resize_range: Range
    gaussian_probability: float
    """Otherwise the noise is Poisson."""
    gaussian_sigma_range: Range
    poisson_scale_range: Range
    gray_probability: float
    jpeg_quality_range: Range


FIRST_STAGE = StageConfig(
    blur_probability=1.0,
    blur_sigma_range=(0.2, 3.0),
    resize_probabilities=(0.2, 0.7, 0.1),
    resize_range=(0.15, 1.5),
    gaussian_probability=0.5,
    gaussian_sigma_range=(1.0, 30.0),
    poisson_scale_range=(0.05, 3.0),
    gray_probability=0.4,
    jpeg_quality_range=(30.0, 95.0),
)

SECOND_STAGE = StageConfig(
    blur_probability=0.8,
    blur_sigma_range=(0.2, 1.5),
    resize_probabilities=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    gaussian_probability=0.5,
    gaussian_sigma_range=(1.0, 25.0),
    poisson_scale_range=(0.05, 2.5),
    gray_probability=0.4,
    jpeg_quality_range=(30.0, 95.0),
)

# The milder published set; its Poisson limits are our own, lowered in step with the Gaussian ones.
LIGHT_FIRST_STAGE = replace(
    FIRST_STAGE,
    resize_range=(0.3, 1.5),
    gaussian_sigma_range=(1.0, 15.0),
    poisson_scale_range=(0.05, 1.5),
    jpeg_quality_range=(60.0, 95.0),
)

LIGHT_SECOND_STAGE = replace(
    SECOND_STAGE,
    blur_probability=0.5,
    resize_range=(0.6, 1.2),
    gaussian_sigma_range=(1.0, 12.0),
    poisson_scale_range=(0.05, 1.2),
    jpeg_quality_range=(60.0, 100.0),
)


@dataclass(frozen=True)
class DegradationConfig:
    """The whole chain. The defaults mix strong, light and clean inputs; see the recipes below."""

    scale: int = 4
    kernel: KernelConfig = field(default_factory=KernelConfig)
    first: StageConfig = FIRST_STAGE
    second: StageConfig = SECOND_STAGE
    light_first: StageConfig = LIGHT_FIRST_STAGE
    light_second: StageConfig = LIGHT_SECOND_STAGE
    final_sinc_probability: float = 0.8
    final_sinc_cutoff_range: Range = (math.pi / 3, math.pi)
    sharpen: bool = True
    """Degrade the unsharp-masked image, as Real-ESRGAN does; clean inputs are never sharpened."""
    light_probability: float = 0.25
    """Share of images that take the light stages instead of the strong ones."""
    clean_probability: float = 0.15
    """Share of images that are only scaled down (antialiased bicubic)."""
    clean_jpeg_probability: float = 0.3
    """Share of the clean ones that are then stored as a good JPEG."""
    clean_jpeg_quality_range: Range = (75.0, 98.0)

    def __post_init__(self) -> None:
        """Refuse shares that leave less than nothing for the strong chain."""
        shares = self.light_probability + self.clean_probability
        if min(self.light_probability, self.clean_probability) < 0 or shares > 1:
            raise ValueError(
                f"light_probability {self.light_probability} + clean_probability {self.clean_probability} "
                "must lie in [0, 1]"
            )


def mixed_x4() -> DegradationConfig:
    """Training recipe: 60 % strong, 25 % light, 15 % clean."""
    return DegradationConfig()


def realesrgan_x4() -> DegradationConfig:
    """Return the published x4 numbers alone."""
    return replace(DegradationConfig(), light_probability=0.0, clean_probability=0.0)


def light_x4() -> DegradationConfig:
    """Only the mild numbers."""
    return replace(DegradationConfig(), light_probability=1.0, clean_probability=0.0)


def balanced_x4() -> DegradationConfig:
    """45 % strong, 25 % light, 30 % clean: for a network that must not spoil good inputs."""
    return replace(DegradationConfig(), clean_probability=0.3)


def clean_x4() -> DegradationConfig:
    """Bicubic reduction only, without JPEG."""
    return replace(DegradationConfig(), light_probability=0.0, clean_probability=1.0, clean_jpeg_probability=0.0)


RECIPES = {
    "mixed": mixed_x4,
    "balanced": balanced_x4,
    "realesrgan": realesrgan_x4,
    "light": light_x4,
    "clean": clean_x4,
}
