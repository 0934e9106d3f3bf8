"""Image losses of the training stages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.routing.coarse import missed

LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601, of RGB in [0, 1]; the offset has no gradient


def luma(image: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W), 0 to 219. Factors are numbers: a tensor of them would make a GPU wait."""
    red, green, blue = image.split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """A smooth L1 distance, mean over everything."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


CLEAN_DECIBEL, CLEAN_SPREAD = 30.0, 2.0  # between the strong chain of Real-ESRGAN and mere scaling


def cleanness(upscaled: Tensor, hr_image: Tensor) -> Tensor:
    """How clean the LR image of each crop is, by what it has in common with the reduced HR image: (B,) in (0, 1).

    The logistic of their PSNR: 0.5 at 30 dB; 0.1 after strong degradation, near 1 where the image was only scaled down.
    """
    difference = F.avg_pool2d(upscaled - hr_image, 4)
    decibel = -10 * (difference.square().mean((1, 2, 3)) + 1e-8).log10()
    return ((decibel - CLEAN_DECIBEL) / CLEAN_SPREAD).sigmoid()


def robust_perceptual(perceptual: nn.Module, sr_image: Tensor, hr_image: Tensor, generator: torch.Generator) -> Tensor:
    """LPIPS of one random crop of each pair at a random size, 0.35 to 0.8 of its own; (B,).

    LPIPS alone rewards a fine grid locked to the strides of its backbone: within minutes it falls by half over pictures
    that are no better. So it never sees the finest octave, and a random place and a random size leave nothing to lock
    to (the idea of E-LPIPS, Kettunen et al. 2019). Sizes are multiples of 8: a GPU prepares for each one anew.
    """
    height, width = sr_image.shape[-2:]
    side = max(32, round(min(height, width) * 5 / 6) // 32 * 32)
    top = int(torch.randint(0, max(1, height - side + 1), (), generator=generator))
    left = int(torch.randint(0, max(1, width - side + 1), (), generator=generator))
    scale = 0.35 + 0.45 * float(torch.rand((), generator=generator))

    def seen(image: Tensor) -> Tensor:
        cut = image[..., top : top + side, left : left + side]
        size = tuple(max(8, round(length * scale / 8) * 8) for length in cut.shape[-2:])
        return F.interpolate(cut, size=size, mode="bilinear", antialias=True, align_corners=False)

    return perceptual(seen(sr_image), seen(hr_image))


def edge_loss(sr_image: Tensor, hr_image: Tensor, constant: float = 170.0) -> Tensor:
    """How unlike the gradient magnitudes of luma are at half resolution; a scalar, 0 is equal.

    Mean and deviation of 1 - GMS (Xue et al. 2014): the mean asks for edges as strong as the HR image's, the deviation
    for no places that are much worse than others. Unlike a perceptual net it rewards no texture that is not there.
    """
    a, b = gradient_magnitude(sr_image), gradient_magnitude(hr_image)
    unlikeness = 1 - (2 * a * b + constant) / (a.square() + b.square() + constant)
    return unlikeness.mean() + unlikeness.std()


def gradient_magnitude(image: Tensor) -> Tensor:
    """Prewitt gradient magnitude of luma (range 0 to 255) at half resolution: (B, 3, H, W) -> (B, 1, H/2-2, W/2-2)."""
    half = F.avg_pool2d(luma(image), 2)
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


def pattern_loss(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """How much more of the SR detail repeats from one 8 px cell to the next than of the HR detail; a scalar from 0.

    A network without noise that is asked for texture draws a pattern locked to its LR grid. `repetition` of photographs
    is about 0.11. Unlike `grid_loss` it is local and sees diagonals. (B, 3, H, W), H and W multiples of 32.
    """
    return F.relu(repetition(sr_image).mean() - repetition(hr_image).mean())


def repetition(image: Tensor, cells: int = 4, floor: float = 1e-5) -> Tensor:
    """Share of the detail's energy that is common to neighbouring 8 px cells: (B, 3, H, W) -> (B, H/32, W/32), 0 to 1.

    In each neighbourhood of `cells` x `cells` cells: the energy of their mean over their mean energy, each cell without
    its own mean. Independent detail has 1 / cells^2. `floor` is the energy below which a flat place does not count.
    """
    # (B, 3, rows, cells, 8, columns, cells, 8)
    detail = image.unflatten(-1, (-1, cells, 8)).unflatten(-4, (-1, cells, 8))
    detail = detail - detail.mean((-4, -1), keepdim=True)
    common = detail.mean((-5, -2)).square().mean((1, 3, 5))
    return common / (detail.square().mean((1, 3, 4, 6, 7)) + floor)


def structure_loss(sr_image: Tensor, hr_image: Tensor, side: int = 8) -> Tensor:
    """1 - SSIM of luma with a uniform window of `side` px, mean over the image; a scalar in [0, 2]."""
    a, b = (luma(image) / 255 for image in (sr_image, hr_image))

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, stride=2)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return 1 - (similarity / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean()


def consistency_loss(sr_image: Tensor, lr_image: Tensor, floor: float = 1e-5) -> Tensor:
    """How far the reduced SR image is from the LR image, in decades of mean square error; mean over the batch.

    (B, 3, sH, sW) and (B, 3, H, W) -> a scalar, about -5 to 0: minus a tenth of the PSNR in dB, level from 50 dB on.
    The logarithm asks most of crops whose LR image is clean; the error itself would ask for noise to be kept.
    """
    return (missed(sr_image, lr_image).square().mean((1, 2, 3)) + floor).log10().mean()
