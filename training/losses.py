"""Image losses of the training stages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601, of RGB in [0, 1]; the offset has no gradient


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """A smooth L1 distance, mean over everything."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def robust_perceptual(
    perceptual: nn.Module, sr_image: Tensor, hr_image: Tensor, generator: torch.Generator, side: int = 160
) -> Tensor:
    """LPIPS of one random crop of the pair at a random size, 0.35 to 0.8 of its own; a scalar.

    LPIPS alone rewards a fine grid locked to the strides of its backbone: within minutes it falls by half over pictures
    that are no better. So it never sees the finest octave, and a random place and a random size leave nothing to lock
    to (the idea of E-LPIPS, Kettunen et al. 2019).
    """
    height, width = sr_image.shape[-2:]
    top = int(torch.randint(0, max(1, height - side + 1), (), generator=generator))
    left = int(torch.randint(0, max(1, width - side + 1), (), generator=generator))
    scale = 0.35 + 0.45 * float(torch.rand((), generator=generator))

    def seen(image: Tensor) -> Tensor:
        cut = image[..., top : top + side, left : left + side]
        size = (round(cut.shape[-2] * scale), round(cut.shape[-1] * scale))
        return F.interpolate(cut, size=size, mode="bilinear", antialias=True, align_corners=False)

    return perceptual(seen(sr_image), seen(hr_image)).mean()


def edge_loss(
    sr_image: Tensor, hr_image: Tensor, generator: torch.Generator | None = None, constant: float = 170.0
) -> Tensor:
    """How unlike the gradient magnitudes of luma are at half resolution; a scalar, 0 is equal.

    Mean and deviation of 1 - GMS (Xue et al. 2014): the mean asks for edges as strong as the HR image's, the deviation
    for no places that are much worse than others. Unlike a perceptual net it rewards no texture that is not there.
    """
    a, b = gradient_magnitude(sr_image), gradient_magnitude(hr_image)
    unlikeness = 1 - (2 * a * b + constant) / (a.square() + b.square() + constant)
    return unlikeness.mean() + unlikeness.std()


def gradient_magnitude(image: Tensor) -> Tensor:
    """Prewitt gradient magnitude of luma (range 0 to 255) at half resolution: (B, 3, H, W) -> (B, 1, H/2-2, W/2-2)."""
    luma = (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    half = F.avg_pool2d(luma, 2)
    rows = half[..., :-2, :] + half[..., 1:-1, :] + half[..., 2:, :]
    columns = half[..., :-2] + half[..., 1:-1] + half[..., 2:]
    across, down = (rows[..., 2:] - rows[..., :-2]) / 3, (columns[..., 2:, :] - columns[..., :-2, :]) / 3
    return (across.square() + down.square() + 1e-3).sqrt()


def grid_loss(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """How much gradient is gathered at single phases of period 2, 4 or 8, beyond the HR image's; a scalar, 0 is none.

    Crops must be aligned, so that the phases are those of the upsampling.
    """
    total = sr_image.new_zeros(())
    for axis in (-1, -2):
        for a, b in zip(phase_profiles(sr_image, axis), phase_profiles(hr_image, axis), strict=True):
            total = total + (a - b).square().sum()
    return total


def phase_profiles(image: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean absolute and mean signed difference of neighbours at each of 8 phases, in units of the mean: (8,) each.

    The signed one sees a comb of period 2, whose steps are equally large at both phases and only differ in sign.
    """
    steps = image.diff(dim=axis).transpose(axis, -1).flatten(0, -2)
    count = steps.shape[-1] // 8 * 8
    phases = steps[:, :count].unflatten(1, (-1, 8))
    absolute, signed = phases.abs().mean((0, 1)), phases.mean((0, 1))
    mean = absolute.mean().clamp_min(1e-6)
    return absolute / mean, signed / mean
