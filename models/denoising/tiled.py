"""Velocity of a large latent from overlapping square tiles, blended as DiT4SR blends them.

Dimension key: B batch  C channels  h w latent grid
"""

import math
from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

Place = tuple[EllipsisType, slice, slice]  # index of a tile into (..., h, w)
OnTile = Callable[[float], None]  # share of the tiles done, in (0, 1]; raise to cancel
TileVelocityFn = Callable[[Tensor, Tensor], Tensor]  # (noisy tile, LR tile) -> velocity of the tile


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis; the last one lies flush with the border."""
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and less than the tile {tile}")
    stride = tile - overlap
    num_tiles = 1 + max(0, math.ceil((size - tile) / stride))
    return [min(i * stride, size - tile) for i in range(num_tiles)]


def bell_weights(tile: int) -> Tensor:
    """(tile, tile) float64: trust in each place of a tile, highest in the middle."""
    # The released code centres rows at tile / 2 but columns at (tile - 1) / 2. Kept: `quality` equals it.
    places = torch.arange(tile, dtype=torch.float64)

    def bell(middle: float) -> Tensor:
        return torch.exp(-(((places - middle) / tile) ** 2) / 0.02) / math.sqrt(0.02 * math.pi)

    return bell(tile / 2)[:, None] * bell((tile - 1) / 2)


def tiled_velocity(
    velocity_fn: TileVelocityFn, noisy_latent: Tensor, lr_latent: Tensor, *, tile: int = 64, overlap: int = 24
) -> Tensor:
    """(B, C, h, w) velocity; one call of `velocity_fn` per tile, or a single one if the latent fits a tile.

    Tiles are square with side min(tile, h, w); `overlap` counts latent pixels; sums are float32.

    Raises:
        ValueError: a side of the latent is not longer than the overlap. DiT4SR never meets this, because it
            enlarges small pictures first.
    """
    return blend_tiles(
        lambda place: velocity_fn(noisy_latent[place], lr_latent[place]), noisy_latent, tile=tile, overlap=overlap
    )


def blend_tiles(
    velocity_at: Callable[[Place], Tensor],
    noisy_latent: Tensor,
    *,
    tile: int,
    overlap: int,
    on_tile: OnTile | None = None,
) -> Tensor:
    """`tiled_velocity` for who needs to know where a tile lies: `velocity_at` is given its place in the latent."""
    height, width = noisy_latent.shape[-2:]
    places = tile_places(height, width, tile, overlap)

    def run(index: int) -> Tensor:
        velocity = velocity_at(places[index])
        if on_tile is not None:
            on_tile((index + 1) / len(places))
        return velocity

    if len(places) == 1:
        return run(0)
    weights = bell_weights(min(tile, height, width)).to(noisy_latent.device, torch.float32)
    total = torch.zeros_like(noisy_latent, dtype=torch.float32)
    total_weight = torch.zeros(height, width, dtype=torch.float32, device=noisy_latent.device)
    for index, place in enumerate(places):
        total[place] += weights * run(index)
        total_weight[place[1:]] += weights
    return total / total_weight


def tile_places(height: int, width: int, tile: int, overlap: int) -> list[Place]:
    """The tiles of a latent row by row; one for all of it if it is no larger than a tile."""
    if height * width <= tile**2:
        return [(..., slice(0, height), slice(0, width))]
    side = min(tile, height, width)
    return [
        (..., slice(top, top + side), slice(left, left + side))
        for top in tile_starts(height, side, overlap)
        for left in tile_starts(width, side, overlap)
    ]
