"""The random chain of `sampling` for a batch where it is, a GPU for one, with torch alone.

A batch shares what changes its size or the order of steps, as Real-ESRGAN's own training does: strength, resize factors
and modes, kind of noise, whether JPEG comes last. Kernels, noise levels and JPEG qualities are each image's own.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.resize import resize
from training.degradation.config import DegradationConfig, Range, StageConfig
from training.degradation.filters import filter2d, gray, sharpen
from training.degradation.jpeg import jpeg_compress
from training.degradation.kernels import pad_kernel, pulse_kernel, sample_blur_kernel, sample_final_kernel
from training.degradation.sampling import resize_factor

RESIZE_MODES = ("area", "bilinear", "bicubic")


class KernelBank:
    """Kernels (N, k, k) drawn once, to take random ones from: drawing a kernel takes longer than blurring with it."""

    def __init__(self, config: DegradationConfig, rng: np.random.Generator, device: torch.device, size: int = 2048):
        kernel, side = config.kernel, config.kernel.padded_size
        stages = (config.first, config.second, config.light_first, config.light_second)
        drawn = {
            sigmas: [sample_blur_kernel(kernel, sigmas, rng) for _ in range(size)]
            for sigmas in {stage.blur_sigma_range for stage in stages}
        }
        last = (
            sample_final_kernel(kernel, config.final_sinc_probability, config.final_sinc_cutoff_range, rng)
            for _ in range(size)
        )
        drawn["last"] = [pulse_kernel(1) if one is None else one for one in last]
        self.kernels = {
            name: torch.from_numpy(np.stack([pad_kernel(one, side) for one in many])).float().to(device)
            for name, many in drawn.items()
        }
        self.pulse = torch.from_numpy(pulse_kernel(side)).float().to(device)

    def take(self, name: Range | str, count: int, rng: np.random.Generator, probability: float = 1.0) -> Tensor:
        """(count, k, k): random kernels, each with this probability, else the identity."""
        kernels = self.kernels[name]
        chosen = torch.from_numpy(rng.integers(len(kernels), size=count)).to(kernels.device)
        is_taken = torch.from_numpy(rng.random(count) < probability).to(kernels.device)
        return torch.where(is_taken[:, None, None], kernels[chosen], self.pulse)


def degrade_batch(
    hr_images: Tensor,
    config: DegradationConfig,
    bank: KernelBank,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, H / scale, W / scale), rounded to 8 bit; as `sampling.degrade`.

    rng: of every choice; generator: of the noise, on the images' device.
    """
    height, width = (side // config.scale for side in hr_images.shape[-2:])
    share = rng.random()
    if share < config.clean_probability:
        lr_images = resize(hr_images, (height, width)).clamp(0, 1)
        if rng.random() < config.clean_jpeg_probability:
            lr_images = compress(lr_images, config.clean_jpeg_quality_range, rng)
        return quantise(lr_images)
    light = share < config.clean_probability + config.light_probability
    first, second = (config.light_first, config.light_second) if light else (config.first, config.second)
    images = sharpen(hr_images) if config.sharpen else hr_images
    images = degrade_once(images, hr_images.shape[-2:], first, bank, rng, generator)
    images = compress(images, first.jpeg_quality_range, rng)
    images = degrade_once(images, (height, width), second, bank, rng, generator)
    kernels, mode = bank.take("last", len(images), rng), RESIZE_MODES[int(rng.integers(3))]

    def shrink(images: Tensor) -> Tensor:
        return filter2d(resize_plain(images, (height, width), mode), kernels)

    if rng.random() < 0.5:
        return quantise(compress(shrink(images), second.jpeg_quality_range, rng))
    return quantise(shrink(compress(images, second.jpeg_quality_range, rng)))


def degrade_once(
    images: Tensor,
    base_size: tuple[int, int],
    stage: StageConfig,
    bank: KernelBank,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """Blur, resize to a random multiple of `base_size` (rows, columns), noise."""
    images = filter2d(images, bank.take(stage.blur_sigma_range, len(images), rng, stage.blur_probability))
    factor = resize_factor(stage.resize_probabilities, stage.resize_range, rng)
    mode = RESIZE_MODES[int(rng.integers(3))]
    images = resize_plain(images, (int(base_size[0] * factor), int(base_size[1] * factor)), mode)
    return add_noise(images, stage, rng, generator)


def resize_plain(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """As OpenCV: area, or linear or cubic without antialiasing."""
    return F.interpolate(images, size, mode=mode, align_corners=None if mode == "area" else False)


def add_noise(images: Tensor, stage: StageConfig, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Gaussian or Poisson noise of each image's own strength, per channel or grey; clipped to [0, 1]."""
    is_gaussian = rng.random() < stage.gaussian_probability
    is_gray = per_image(rng.random(len(images)) < stage.gray_probability, images)
    if is_gaussian:
        strength = per_image(rng.uniform(*stage.gaussian_sigma_range, len(images)) / 255, images)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return (images + strength * torch.where(is_gray > 0, noise[:, :1], noise)).clamp(0, 1)
    strength = per_image(rng.uniform(*stage.poisson_scale_range, len(images)), images)
    shades = poisson_noise(gray(images).clamp(0, 1), generator)
    noise = torch.where(is_gray > 0, shades, poisson_noise(images.clamp(0, 1), generator))
    return (images + strength * noise).clamp(0, 1)


def poisson_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zero-mean shot noise of (B, C, H, W) in [0, 1]; its strength follows the number of 8-bit values in use."""
    pixels = (images * 255).round()
    found = torch.zeros(len(images), 256, device=images.device)
    found.scatter_(1, pixels.flatten(1).long(), 1.0)
    levels = (2 ** found.sum(1).log2().ceil())[:, None, None, None]
    clean = pixels / 255
    return torch.poisson(clean * levels, generator) / levels - clean


def compress(images: Tensor, quality_range: Range, rng: np.random.Generator) -> Tensor:
    quality = torch.from_numpy(np.rint(rng.uniform(*quality_range, len(images)))).float()
    return jpeg_compress(images.clamp(0, 1), quality.to(images.device), as_encoder=True)


def per_image(values: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(images.device)[:, None, None, None]


def quantise(images: Tensor) -> Tensor:
    """Clip to [0, 1] and round to the 256 values of 8 bit."""
    return (images.clamp(0, 1) * 255).round() / 255
