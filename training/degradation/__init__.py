"""Second-order degradation of photographs: configuration, random chain, and torch forms of its steps."""

from training.degradation.batch import KernelBank, degrade_batch
from training.degradation.config import (
    RECIPES,
    DegradationConfig,
    KernelConfig,
    StageConfig,
    clean_x4,
    light_x4,
    mixed_x4,
    realesrgan_x4,
)
from training.degradation.filters import filter2d, sharpen
from training.degradation.jpeg import jpeg_compress
from training.degradation.sampling import degrade

__all__ = [
    "RECIPES",
    "DegradationConfig",
    "KernelBank",
    "KernelConfig",
    "StageConfig",
    "clean_x4",
    "degrade",
    "degrade_batch",
    "filter2d",
    "jpeg_compress",
    "light_x4",
    "mixed_x4",
    "realesrgan_x4",
    "sharpen",
]
