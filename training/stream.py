"""Pairs that are made while a network trains, where it trains: mosaics of a folder's photographs, degraded afresh.

A GPU sees so many crops that pairs on disk would be learned by heart; and photographs are far smaller than their pairs.
The photographs lie on the device; a pool keeps the latest canvases made of them, and batches are cropped from the pool.
On a CPU `training.pairs`, whose chain runs through OpenCV, is several times faster.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.resize import resize
from training.degradation import RECIPES, KernelBank, degrade_batch
from training.mosaics import COLOURED_SHARE, GAMMAS, SCALES, SHRUNK_SHARE, SIDE, read_photographs
from training.pairs import PairDataset

SCALE = 4
# LR images (B, 3, S/4, S/4) in [0, 1] -> what is kept of each canvas beside them, (B, ...), and a caption of each
Look = Callable[[Tensor], tuple[dict[str, Tensor], list[str]]]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    recipe: str = "balanced"
    mosaic_share: float = 0.7  # of the groups of canvases; the others are whole photographs, turned and recoloured
    flat_share: float = 0.01  # one colour on both sides, so that flat areas stay flat
    capacity: int = 2048  # canvases in the pool
    first: int = 256  # canvases before the first batch
    group: int = 16  # canvases that are made together, and share scales, turns and the order of the degradation
    round: int = 64  # canvases that are made one group after the other, then looked at
    crops_per_canvas: int = 2  # more canvases are made before one has given more than this on average


class CanvasMaker:
    """Groups of HR canvases from photographs (N, 3, S, S) uint8; the counterpart of `training.mosaics`, on a device."""

    def __init__(self, photographs: Tensor, config: StreamConfig, rng: np.random.Generator):
        self.photographs, self.config, self.rng = photographs, config, rng

    def make(self) -> Tensor:
        """(group, 3, S, S) float32 in [0, 1], 8-bit values."""
        if self.rng.random() >= self.config.mosaic_share:
            return self.pieces((SIDE, SIDE))
        canvas = torch.empty(self.config.group, 3, SIDE, SIDE, device=self.photographs.device)
        row, column = (int(v) for v in self.rng.integers(SIDE // 4, SIDE * 3 // 4 + 1, 2))
        for rows in (slice(0, row), slice(row, SIDE)):
            for columns in (slice(0, column), slice(column, SIDE)):
                canvas[:, :, rows, columns] = self.pieces((rows.stop - rows.start, columns.stop - columns.start))
        return canvas

    def pieces(self, size: tuple[int, int]) -> Tensor:
        """A piece (3, rows, columns) for each canvas: other photographs and places, one scale and orientation."""
        rng, device = self.rng, self.photographs.device
        chosen = torch.from_numpy(rng.integers(len(self.photographs), size=self.config.group)).to(device)
        images = self.photographs[chosen].float() / 255
        images = images.rot90(int(rng.integers(4)), (2, 3))
        if rng.random() < 0.5:
            images = images.flip(3)
        smallest = max(SCALES[0], size[0] / SIDE, size[1] / SIDE)
        if smallest < 1 and rng.random() < SHRUNK_SHARE:
            side = max(*size, round(SIDE * rng.uniform(smallest, SCALES[1])))
            images = resize(images, (side, side)).clamp(0, 1)
        places = [
            rng.integers(length - part + 1, size=len(images))
            for length, part in zip(images.shape[2:], size, strict=True)
        ]
        tops, lefts = (torch.from_numpy(place).to(device) for place in places)
        whole = torch.arange(len(images), device=device)
        pieces = Drawn(whole, tops, lefts, []).cut_plain(images, size)
        return (self.recolour(pieces) * 255).round() / 255

    def recolour(self, pieces: Tensor) -> Tensor:
        """Half of the pieces: channels in another order, and another gamma for each."""
        rng, device, count = self.rng, pieces.device, len(pieces)
        gammas = rng.uniform(*GAMMAS, (count, 1)) * rng.uniform(0.9, 1.1, (count, 3))
        orders = rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1)
        is_plain = rng.random(count) >= COLOURED_SHARE
        gammas[is_plain], orders[is_plain] = 1.0, np.arange(3)
        order = torch.from_numpy(orders).to(device)[:, :, None, None].expand_as(pieces)
        return pieces.gather(1, order) ** torch.from_numpy(gammas).float().to(device)[:, :, None, None]


@dataclass(frozen=True)
class Drawn:
    """Images and a place in each, for crops: (B,) integers on the images' device."""

    images: Tensor
    tops: Tensor
    lefts: Tensor
    captions: list[str]

    def cut_plain(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, C, H, W) -> (B, C, rows, columns): the crop of each one at its place."""
        device = images.device
        rows = self.tops[:, None] + torch.arange(size[0], device=device)
        columns = self.lefts[:, None] + torch.arange(size[1], device=device)
        planes = torch.arange(images.shape[1], device=device)
        return images[
            self.images[:, None, None, None], planes[:, None, None], rows[:, None, :, None], columns[:, None, None]
        ]

    def cut(self, images: Tensor, cells: int, skip: int, side: int) -> Tensor:
        """(N, C, H, W) -> the crop of each one, (B, C, side cells, side cells), float32.

        Places and `side` count units of `cells` values; `skip` units lie between the place and the crop.
        """
        tops, lefts = ((place + skip) * cells for place in (self.tops, self.lefts))
        size = (side * cells, side * cells)
        return Drawn(self.images, tops, lefts, []).cut_plain(images, size).float()


class PairPool:
    """The latest canvases on a device; the counterpart of `training.pairs.PairDataset`.

    `kept` has a tensor (capacity, ...) per name: hr and lr, uint8, and what `look` gives. Raises ValueError on an
    unknown recipe, FileNotFoundError on a folder without photographs.
    """

    def __init__(
        self,
        photographs: Path,
        held_out: set[str],
        config: StreamConfig,
        device: torch.device,
        seed: int,
        look: Look | None = None,
    ):
        if config.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {config.recipe!r}; known: {', '.join(RECIPES)}")
        self.config, self.device, self.look, self.degradation = config, device, look, RECIPES[config.recipe]()
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        bank = np.stack([image[:SIDE, :SIDE].transpose(2, 0, 1) for image in read_photographs(photographs, held_out)])
        self.maker = CanvasMaker(torch.from_numpy(bank).to(device), config, self.rng)
        self.kernels = KernelBank(self.degradation, self.rng, device)
        self.kept: dict[str, Tensor] = {}
        self.captions = [""] * config.capacity
        self.num_made, self.num_given = 0, 0

    @property
    def num_ready(self) -> int:
        return min(self.num_made, self.config.capacity)

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes canvases until there are enough for what was given."""
        while self.num_made < self.config.first + self.num_given // self.config.crops_per_canvas:
            pairs = [self.make_pairs() for _ in range(self.config.round // self.config.group)]
            self.keep(torch.cat([hr for hr, _ in pairs]), torch.cat([lr for _, lr in pairs]))

    def make_pairs(self) -> tuple[Tensor, Tensor]:
        """A group of canvases, degraded: (G, 3, S, S) and (G, 3, S/4, S/4) in [0, 1]."""
        hr = self.maker.make()
        lr = degrade_batch(hr, self.degradation, self.kernels, self.rng, self.generator)
        is_flat = torch.from_numpy(self.rng.random(len(hr)) < self.config.flat_share).to(self.device)
        flat = hr[:, :, :1, :1]
        return tuple(torch.where(is_flat[:, None, None, None], flat, images) for images in (hr, lr))

    def keep(self, hr: Tensor, lr: Tensor) -> None:
        seen, captions = self.look(lr) if self.look is not None else ({}, [""] * len(lr))
        places = [(self.num_made + k) % self.config.capacity for k in range(len(lr))]
        index = torch.tensor(places, device=self.device)
        pixels = {name: (images * 255).round().byte() for name, images in (("hr", hr), ("lr", lr))}
        for name, values in {**pixels, **seen}.items():
            if name not in self.kept:
                self.kept[name] = values.new_zeros(self.config.capacity, *values.shape[1:])
            self.kept[name][index] = values
        for place, caption in zip(places, captions, strict=True):
            self.captions[place] = caption
        self.num_made += len(lr)

    def draw(self, rng: np.random.Generator, batch_size: int, room: int) -> Drawn:
        """Random canvases and places in 0 .. room."""
        self.refresh()
        self.num_given += batch_size
        chosen, places = rng.integers(self.num_ready, size=batch_size), rng.integers(room + 1, size=(2, batch_size))
        index = to_device(torch.from_numpy(np.concatenate([chosen[None], places])), self.device)
        return Drawn(*index, captions=[self.captions[i] for i in chosen])

    def sample_batch(self, rng: np.random.Generator, batch_size: int, lr_crop: int) -> tuple[Tensor, Tensor]:
        """lr (B, 3, c, c) and hr (B, 3, 4c, 4c), float32 in [0, 1], on the device, with c = `lr_crop`."""
        drawn = self.draw(rng, batch_size, SIDE // SCALE - lr_crop)
        return drawn.cut(self.kept["lr"], 1, 0, lr_crop) / 255, drawn.cut(self.kept["hr"], SCALE, 0, lr_crop) / 255


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor made on the CPU, without waiting for what the device is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Where pairs come from: a folder of `training.pairs`, or photographs, and where the networks are trained."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pairs", type=Path, help="folder made by training.pairs")
    source.add_argument("--photographs", type=Path, help="folder of photographs: fresh pairs are made all the time")
    parser.add_argument("--held-out", nargs="*", default=[], metavar="NAME", help="photographs that are not used")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="balanced", help="of fresh pairs")
    parser.add_argument("--mosaic-share", type=float, default=StreamConfig.mosaic_share, help="of fresh pairs")
    parser.add_argument(
        "--crops-per-canvas", type=int, default=StreamConfig.crops_per_canvas, help="more where making pairs is slow"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))


def open_pool(args: argparse.Namespace, look: Look | None = None) -> PairPool:
    config = StreamConfig(recipe=args.recipe, mosaic_share=args.mosaic_share, crops_per_canvas=args.crops_per_canvas)
    return PairPool(args.photographs, set(args.held_out), config, args.device, args.seed, look)


def open_pairs(args: argparse.Namespace) -> PairDataset | PairPool:
    """The source that `add_source_arguments` was told."""
    return PairDataset(args.pairs) if args.pairs else open_pool(args)
