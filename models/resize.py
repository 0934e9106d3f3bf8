"""Antialiased resizing of float image tensors, the same numbers as Pillow's resize."""

import torch.nn.functional as F
from torch import Tensor

MODES = ("bicubic", "bilinear")


def resize(image: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resizes images the way Pillow's BICUBIC (a = -0.5) and BILINEAR do.

    image: (B, C, H, W) float, any range.  size: (height, width) in pixels.
    Returns (B, C, height, width), same dtype. Bicubic overshoots at hard edges, so an image in [0, 1]
    may leave that range: clamp at the end of the chain, not here, or a later resize of a residual breaks.
    Raises ValueError on an unknown mode or an empty size.
    """
    if mode not in MODES:
        raise ValueError(f"unknown resize mode {mode!r}; known: {', '.join(MODES)}")
    if min(size) < 1:
        raise ValueError(f"cannot resize to {size[0]} x {size[1]} pixels")
    if image.shape[-2:] == tuple(size):
        return image
    # antialias=True is what makes it Pillow's filter: it widens the support when shrinking and, also when
    # enlarging, takes a = -0.5 where the plain bicubic takes -0.75. The pass is separable, one axis after
    # the other, so the only scratch is one half-resized image.
    # Half precision has no CPU kernel and would round the weights; the sum is done in float32.
    resized = F.interpolate(image.float(), size=tuple(size), mode=mode, antialias=True)
    return resized.to(image.dtype)
