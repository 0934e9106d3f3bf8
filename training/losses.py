"""Image losses of the training stages."""

import torch
from torch import Tensor, nn


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """A smooth L1 distance, mean over everything."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def robust_perceptual(
    perceptual: nn.Module, sr_image: Tensor, hr_image: Tensor, generator: torch.Generator, side: int = 128
) -> Tensor:
    """LPIPS of one random crop of the pair, half the time after a light blur; a scalar.

    LPIPS alone rewards a fine grid locked to the strides of its backbone. The random place moves the strides, the blur
    hides what only lives at the last octave, so such a grid earns little. The crop keeps the loss affordable.
    """
    height, width = sr_image.shape[-2:]
    top = int(torch.randint(0, max(1, height - side + 1), (), generator=generator))
    left = int(torch.randint(0, max(1, width - side + 1), (), generator=generator))
    blurred = bool(torch.rand((), generator=generator) < 0.5)

    def seen(image: Tensor) -> Tensor:
        crop = image[..., top : top + side, left : left + side].contiguous()
        return blur(crop) if blurred else crop

    return perceptual(seen(sr_image), seen(hr_image)).mean()


def blur(image: Tensor) -> Tensor:
    """[1 2 1] / 4 along both axes, border cut. By slices: a grouped convolution's backward is far slower on a CPU."""
    image = (image[..., :-2] + 2 * image[..., 1:-1] + image[..., 2:]) / 4
    return (image[..., :-2, :] + 2 * image[..., 1:-1, :] + image[..., 2:, :]) / 4
