"""Deblocking: takes the grid out that a network with a stride of 8 px leaves in its image."""

import torch
import torch.nn.functional as F
from torch import Tensor

PERIOD = 8  # px, the stride of the latent; 2 and 4, the strides of the coarse network, divide it
ROUNDS = 3
STRONGEST_VOTE = 2.0  # a window's say is held to [1/2, 2]: a single edge is the picture's, not a grid
BAND = 512  # rows worked on at a time
LUMA = (0.299, 0.587, 0.114)


@torch.no_grad()
def even_phases(image: Tensor, limit: float) -> Tensor:
    """(1, 3, H, W) in [0, 1] -> the same with equally large steps between neighbours at all 8 phases of the grid.

    Natural pictures have no preferred phase; a network that decodes cells of 8 px makes larger steps at some than at
    others, which is seen as a grid. Each step is made up to `2 * limit` of itself smaller or larger, by moving both of
    its pixels; 0 leaves the image as it is. A side of fewer than 8 windows tells too little and stays as it is.

    Not in the paper. Works in place.
    """
    if limit > 0:
        for view in (image, image.transpose(-1, -2)):
            if view.shape[-1] >= 8 * PERIOD:
                even_columns(view, limit)
    return image


def even_columns(image: Tensor, limit: float) -> None:
    """`even_phases` along the last axis, in place."""
    total = image.new_zeros(PERIOD)
    for _ in range(ROUNDS):
        wanted = (total + (phase_excess(image) / 4)).clamp(-limit, limit)
        share, total = wanted - total, wanted
        shares = share.repeat(image.shape[-1] // PERIOD + 1)[: image.shape[-1] - 1]
        for band in image.split(BAND, dim=-2):
            step = band.diff(dim=-1) * shares
            band[..., :-1] += step
            band[..., 1:] -= step
    image.clamp_(0, 1)


def phase_excess(image: Tensor) -> Tensor:
    """How much larger the steps along the last axis are at each of 8 phases than around it: (8,), 0 is no grid.

    Every window of 8 px votes with the ratio of its step to the mean of its neighbourhood, so that the few strong
    edges of a picture do not decide.
    """
    luma = image.new_tensor(LUMA)[:, None, None]
    bands = image[0].split(BAND, dim=-2)
    steps = sum((band * luma).sum(0).diff(dim=-1).abs().sum(0) for band in bands) / image.shape[-2]
    kernel = steps.new_ones(1, 1, PERIOD + 1) / PERIOD
    kernel[..., [0, -1]] /= 2
    around = F.conv1d(F.pad(steps[None, None], (PERIOD // 2, PERIOD // 2), mode="reflect"), kernel)[0, 0]
    floor = 1e-4  # of a step of 8-bit 1/255 = 4e-3: flat windows do not vote
    votes = ((steps + floor) / (around + floor)).clamp(1 / STRONGEST_VOTE, STRONGEST_VOTE)
    phases = votes[: len(votes) // PERIOD * PERIOD].view(-1, PERIOD).mean(0)
    return phases / phases.mean() - 1
