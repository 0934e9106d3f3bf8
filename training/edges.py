"""Canny where the image is: the edge modality of a batch on a GPU, without a way to the CPU and back."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.degradation.filters import gray

TAN_22 = 13573  # tan(22.5 degrees) * 2**15, OpenCV's fixed point
REACH = 48  # px along a chain of weak edges that a strong one keeps; OpenCV follows it to its end


def canny_on_device(image: Tensor, low: int = 100, high: int = 200) -> Tensor:
    """`models.modalities.edge.canny_edges` in torch: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) of 0.0 and 1.0.

    Equal to OpenCV's but for weak edges further than `REACH` px from the strong one that they belong to.
    """
    shades = gray(image.float()).clamp(0, 1).mul(255).round()
    padded = F.pad(shades, (1, 1, 1, 1), mode="replicate")
    columns = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    dx = (columns[..., 2:] - columns[..., :-2]).int()
    dy = (rows[..., 2:, :] - rows[..., :-2, :]).int()
    magnitude = dx.abs() + dy.abs()
    candidates = is_maximum(magnitude, dx, dy) & (magnitude > low)
    strong = candidates & (magnitude > high)
    weak, kept = candidates.half(), strong.half()
    for _ in range(REACH):
        kept = F.max_pool2d(kept, 3, 1, 1) * weak
    return kept.to(image.dtype)


def is_maximum(magnitude: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Where a pixel's gradient is the largest along its direction, of four; (B, 1, H, W) integers -> bool."""
    around = F.pad(magnitude, (1, 1, 1, 1))

    def neighbour(down: int, right: int) -> Tensor:
        height, width = magnitude.shape[-2:]
        return around[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = dx.abs().long() * TAN_22, dy.abs().long() << 15
    flat, steep = y < x, y > x + (dx.abs().long() << 16)
    across = (magnitude > neighbour(0, -1)) & (magnitude >= neighbour(0, 1))
    along = (magnitude > neighbour(-1, 0)) & (magnitude >= neighbour(1, 0))
    falling = (magnitude > neighbour(-1, -1)) & (magnitude > neighbour(1, 1))
    rising = (magnitude > neighbour(-1, 1)) & (magnitude > neighbour(1, -1))
    diagonal = torch.where((dx ^ dy) < 0, rising, falling)
    return torch.where(flat, across, torch.where(steep, along, diagonal))
