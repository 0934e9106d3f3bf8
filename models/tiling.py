"""Tiles that cover an image of any size, and the feathered blend that puts their results together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

FEATHERS = ("linear", "cosine")


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image, in its pixels (or latent cells). May overhang the lower and right border."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


def plan_tiles(
    height: int, width: int, tile: int, overlap: int, multiple: int = 1, square: bool = False, even: bool = False
) -> tuple[Tile, ...]:
    """Covers height x width with equal tiles, row by row.

    tile: side of a tile.  overlap: what neighbours share at least.  multiple: every position and side is a
    multiple of it, so that maps made per patch fall on one grid.  square: also a narrow image gets square
    tiles (DiT4SR's blocks take nothing else).  even: tiles no larger than their number needs, so that none overlaps
    its neighbour by much more than was asked for.
    An image smaller than a tile gets one tile of its own size, rounded up. The last tile ends at the border,
    rounded up to the multiple: it overhangs by less than `multiple`, and `crop_tile` fills that.
    Raises ValueError when tile or overlap is no multiple, or the overlap leaves no step.
    """
    if min(height, width, tile, multiple) < 1:
        raise ValueError(f"cannot tile {height} x {width} with tiles of {tile} and multiple {multiple}")
    if tile % multiple or overlap % multiple:
        raise ValueError(f"tile {tile} and overlap {overlap} must be multiples of {multiple}")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and less than the tile, {tile}")
    padded = ceil(height / multiple) * multiple, ceil(width / multiple) * multiple
    sides = min(tile, padded[0]), min(tile, padded[1])
    if square:
        sides = (min(sides),) * 2
    if even:
        sides = tuple(even_side(*axis, overlap, multiple) for axis in zip(padded, sides, strict=True))
    tops, lefts = (axis_starts(length, side, overlap, multiple) for length, side in zip(padded, sides, strict=True))
    return tuple(Tile(top, left, *sides) for top in tops for left in lefts)


def even_side(length: int, side: int, overlap: int, multiple: int) -> int:
    """The least side with which as many tiles as those of `side` cover the axis."""
    count = len(axis_starts(length, side, overlap, multiple))
    return ceil((length + (count - 1) * overlap) / count / multiple) * multiple


def axis_starts(length: int, side: int, overlap: int, multiple: int) -> tuple[int, ...]:
    """Where the tiles of one axis begin; the last is flush with the end."""
    # A tile shrunk to a narrow image may be no larger than the overlap asked for.
    stride = side - overlap if overlap < side else max(multiple, side // 2 // multiple * multiple)
    count = 1 + ceil((length - side) / stride)
    return tuple(min(i * stride, length - side) for i in range(count))


def crop_tile(image: Tensor, tile: Tile) -> Tensor:
    """Reads a tile out of (B, C, H, W); what overhangs the border repeats the edge."""
    crop = image[..., tile.rows, tile.columns]
    missing = tile.height - crop.shape[-2], tile.width - crop.shape[-1]
    return F.pad(crop, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else crop


def tile_batches(tiles: Sequence[Tile], batch_size: int) -> Iterator[tuple[Tile, ...]]:
    """Groups of at most batch_size tiles, in order."""
    for start in range(0, len(tiles), batch_size):
        yield tuple(tiles[start : start + batch_size])


class BlendAccumulator:
    """Sums tile results with feathered weights into one image.

    The tiles form a grid, so the weights factor into rows and columns and are normalised on each axis,
    in float64, before anything is added: over every pixel they sum to 1 (to float32's rounding), and no
    second image of weight sums is needed. Overlaps are crossfaded over `overlap` pixels; a border of the
    image is not faded.

    tiles: from plan_tiles, all of them to be added once.  height, width: the image planned for.
    scale: result pixels per planned pixel, an integer.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        height: int,
        width: int,
        overlap: int,
        scale: int = 1,
        feather: str = "cosine",
    ):
        if feather not in FEATHERS:
            raise ValueError(f"unknown feather {feather!r}; known: {', '.join(FEATHERS)}")
        self.scale, self.size = scale, (height * scale, width * scale)
        rows = {tile.top: tile.height for tile in tiles}
        columns = {tile.left: tile.width for tile in tiles}
        self.row_weights = axis_weights(rows, self.size[0], overlap, scale, feather)
        self.column_weights = axis_weights(columns, self.size[1], overlap, scale, feather)
        self.pending = set(tiles)
        self.total: Tensor | None = None

    def add(self, tile: Tile, value: Tensor) -> None:
        """Adds the result for a tile, (B, C, tile.height * scale, tile.width * scale), in any order."""
        expected = tile.height * self.scale, tile.width * self.scale
        if tuple(value.shape[-2:]) != expected:
            raise ValueError(f"result is {tuple(value.shape[-2:])}, the tile needs {expected}")
        if tile not in self.pending:
            raise ValueError(f"{tile} was added before or was not planned")
        self.pending.remove(tile)
        if self.total is None:
            self.total = torch.zeros(*value.shape[:-2], *self.size, device=value.device)
        rows, columns = self.row_weights[tile.top], self.column_weights[tile.left]
        weights = torch.outer(rows, columns).to(value.device, torch.float32)
        top, left = tile.top * self.scale, tile.left * self.scale
        height, width = weights.shape  # what overhangs the border is dropped here
        self.total[..., top : top + height, left : left + width] += value[..., :height, :width] * weights

    def result(self) -> Tensor:
        """The blended image (B, C, height * scale, width * scale) in float32."""
        if self.pending or self.total is None:
            raise ValueError(f"{len(self.pending)} tiles have not been added")
        return self.total


def axis_weights(sides: dict[int, int], length: int, overlap: int, scale: int, feather: str) -> dict[int, Tensor]:
    """Weights of the tiles of one axis by their start, float64, summing to 1 at each of `length` places."""
    raw, total = {}, torch.zeros(length, dtype=torch.float64)
    first, last = min(sides), max(sides)
    for start, side in sides.items():
        begin, end = start * scale, min((start + side) * scale, length)
        position = torch.arange(begin, end, dtype=torch.float64) - begin + 0.5
        weight = torch.ones_like(position)
        ramp = min(overlap, side) * scale
        if start != first and ramp:
            weight = torch.minimum(weight, position / ramp)
        if start != last and ramp:
            weight = torch.minimum(weight, (side * scale - position) / ramp)
        if feather == "cosine":
            weight = torch.sin(weight * (torch.pi / 2)) ** 2
        raw[start] = weight
        total[begin:end] += weight
    return {start: w / total[start * scale : start * scale + len(w)] for start, w in raw.items()}


def run_tiled(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int,
    overlap: int,
    *,
    multiple: int = 1,
    scale: int = 1,
    feather: str = "cosine",
    batch_size: int = 1,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Runs a network over (B, C, H, W) tile by tile and blends: (B, C', H * scale, W * scale) float32.

    batch_size: tiles per call; the network sees (batch_size * B, C, tile, tile).
    on_tile: told (tiles done, tiles in all) after each call; may raise to cancel.
    """
    height, width = image.shape[-2:]
    tiles = plan_tiles(height, width, tile, overlap, multiple)
    blend = BlendAccumulator(tiles, height, width, overlap, scale, feather)
    for group in tile_batches(tiles, batch_size):
        values = network(torch.cat([crop_tile(image, member) for member in group]))
        for member, value in zip(group, values.split(image.shape[0]), strict=True):
            blend.add(member, value)
        if on_tile:
            on_tile(len(tiles) - len(blend.pending), len(tiles))
    return blend.result()


def run_padded_tiles(network: Callable[[Tensor], Tensor], image: Tensor, tile: int, pad: int, scale: int) -> Tensor:
    """Runs a convolutional network tile by tile with `pad` pixels of context and no blend.

    image: (B, C, H, W).  tile: side of a tile, 0 for the whole image at once.  pad: context read around
    each tile where the image has it, cut off the result again.  Returns (B, C', H * scale, W * scale).
    Real-ESRGAN's way of tiling: exact when pad covers the receptive field, else a faint seam may remain.
    """
    if not tile:
        return network(image)
    height, width = image.shape[-2:]
    output: Tensor | None = None
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            above, before = min(pad, top), min(pad, left)
            value = network(image[..., top - above : bottom + pad, left - before : right + pad])
            if output is None:
                output = value.new_empty(*value.shape[:-2], height * scale, width * scale)
            y, x = above * scale, before * scale
            inner = value[..., y : y + (bottom - top) * scale, x : x + (right - left) * scale]
            output[..., top * scale : bottom * scale, left * scale : right * scale] = inner
    assert output is not None  # range(0, height, tile) is never empty for an image
    return output
