"""Image losses of the training stages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """A smooth L1 distance, mean over everything."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def robust_perceptual(perceptual: nn.Module, sr_image: Tensor, hr_image: Tensor, generator: torch.Generator) -> Tensor:
    """LPIPS of the pair after one shared random shift and, half the time, a light blur; a scalar.

    LPIPS alone rewards a fine grid locked to the strides of its backbone. The shift moves the strides, the blur hides
    what only lives at the last octave, so such a grid earns little.
    """
    dy, dx = (int(v) for v in torch.randint(0, 8, (2,), generator=generator))
    pair = torch.cat([sr_image, hr_image])[..., dy:, dx:]
    if torch.rand((), generator=generator) < 0.5:
        kernel = torch.tensor([1.0, 2.0, 1.0])
        weight = (kernel[:, None] * kernel[None, :] / 16).expand(3, 1, 3, 3)
        pair = F.conv2d(F.pad(pair, (1, 1, 1, 1), mode="replicate"), weight, groups=3)
    a, b = pair.chunk(2)
    return perceptual(a, b).mean()
