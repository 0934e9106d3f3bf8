"""The published sampling loop: classifier-free guidance in one batch, tile by tile, Euler steps over the tiles.

Dimension key: B batch (2 with guidance: unconditional, conditional; else 1)  C channels  h w latent grid
L text tokens  J text features
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.denoising.sampling import OnStep, euler, guide
from models.denoising.tiled import OnTile, Place, blend_tiles
from models.denoising.transformer import DiffusionTransformer

FusedTokensFn = Callable[[slice, slice, float], Tensor]  # (rows, columns, timestep) of a tile -> (1 or B, P, D)


@dataclass(frozen=True)
class Condition:
    """What one picture is denoised towards."""

    lr_latent: Tensor  # (1 or B, C, h, w), normalised
    text_embeddings: Tensor  # (B, L, J)
    pooled: Tensor  # (B, .)
    cfg_scale: float = 1.0  # read when B is 2
    fused_tokens: FusedTokensFn | None = None  # None: the fused group is absent


def tile_velocity(
    network: DiffusionTransformer, noisy_latent: Tensor, condition: Condition, place: Place, sigma: float
) -> Tensor:
    """Guided velocity (1, C, ., .) float32 of one tile; the network runs in the precision of its weights."""
    batch, dtype = len(condition.text_embeddings), network.dtype
    fused = None if condition.fused_tokens is None else condition.fused_tokens(*place[1:], 1000 * sigma)
    velocity = network(
        noisy_latent[place].expand(batch, -1, -1, -1).to(dtype),
        condition.lr_latent[place].expand(batch, -1, -1, -1).to(dtype),
        condition.text_embeddings.to(dtype),
        condition.pooled.to(dtype),
        torch.full((batch,), 1000 * sigma, device=noisy_latent.device),
        None if fused is None else fused.expand(batch, -1, -1).to(dtype),
    ).float()
    return guide(*velocity.chunk(2), condition.cfg_scale) if batch == 2 else velocity


def step_velocity(
    network: DiffusionTransformer,
    noisy_latent: Tensor,
    condition: Condition,
    sigma: float,
    *,
    tile: int,
    overlap: int,
    on_tile: OnTile | None = None,
) -> Tensor:
    """Guided velocity (1, C, h, w) of a whole picture, in tiles where it is larger than one."""

    def at(place: Place) -> Tensor:
        return tile_velocity(network, noisy_latent, condition, place, sigma)

    return blend_tiles(at, noisy_latent, tile=tile, overlap=overlap, on_tile=on_tile)


def sample(
    network: DiffusionTransformer,
    noise: Tensor,
    condition: Condition,
    sigmas: Tensor,
    *,
    tile: int = 64,
    overlap: int = 24,
    on_step: OnStep | None = None,
) -> Tensor:
    """From noise (1, C, h, w) at `sigmas[0]` to the clean latent; equals the released loop but for rounding.

    The released "start from LR" is no choice here: it mixes in (1 - sigma) of the LR latent, and the first sigma is
    exactly 1.
    """

    def velocity(noisy_latent: Tensor, sigma: float) -> Tensor:
        return step_velocity(network, noisy_latent, condition, sigma, tile=tile, overlap=overlap)

    return euler(velocity, noise, sigmas, on_step)
