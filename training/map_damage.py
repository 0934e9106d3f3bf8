"""Damage to a modality's map, within a region: what reliability has to notice."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.corruption import CELL, corrupt


def cell_of(name: str) -> int:
    """Map pixels per token side."""
    return 1 if name == "dino" else CELL


def shift(modality: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """By 2 to 8 tokens along each axis, round the border."""
    steps = [int(rng.integers(2, 9) * rng.choice((-1, 1))) * cell_of(name) for _ in range(2)]
    return modality.roll(steps, (-2, -1))


def add_noise(modality: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """0.2 to 2 times the map's own deviation."""
    spread = modality.std((-2, -1), keepdim=True).clamp_min(0.05)
    noisy = modality + float(rng.uniform(0.2, 2)) * spread * torch.randn(modality.shape, generator=generator(rng))
    return noisy if name == "dino" else noisy.clamp(0, 1)


def blur(modality: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """Means over windows of 3 to 9 tokens."""
    side, cell = int(rng.choice((3, 5, 9))), cell_of(name)
    tokens = F.avg_pool2d(modality, cell)
    means = F.avg_pool2d(tokens, side, stride=1, padding=side // 2, count_include_pad=False)
    return means if cell == 1 else F.interpolate(means, scale_factor=cell, mode="bilinear", align_corners=False)


def flatten(modality: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """The map's mean everywhere, or for a rendered map any grey."""
    if name == "dino" or rng.random() < 0.5:
        return modality.mean((-2, -1), keepdim=True).expand_as(modality)
    return torch.full_like(modality, float(rng.random()))


def shuffle(modality: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    return corrupt(modality, name, "shuffle", generator(rng))


def replace(modality: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """Noise of the map's range instead of it."""
    return corrupt(modality, name, "noise", generator(rng))


DAMAGE: dict[str, Callable[[Tensor, str, np.random.Generator], Tensor]] = {
    "shuffle": shuffle,
    "noise": replace,
    "shift": shift,
    "added noise": add_noise,
    "blur": blur,
    "constant": flatten,
}
OTHER = "other image"


def damage(modality: Tensor, other: Tensor, name: str, kind: str, rng: np.random.Generator) -> Tensor:
    """A modality (1, C, H, W) damaged all over. other: the same modality of another image, for OTHER."""
    return other if kind == OTHER else DAMAGE[kind](modality, name, rng)


def damage_region(modality: Tensor, other: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """Damage of a random kind, all over or in a random rectangle of tokens."""
    kind = str(rng.choice((OTHER, *DAMAGE)))
    damaged = damage(modality, other, name, kind, rng)
    if rng.random() < 0.4:
        return damaged
    cell, mixed = cell_of(name), modality.clone()
    spans = []
    for side in modality.shape[-2:]:
        tokens = side // cell
        length = int(rng.integers(min(4, tokens), tokens + 1))
        start = int(rng.integers(0, tokens - length + 1))
        spans.append(slice(start * cell, (start + length) * cell))
    mixed[..., spans[0], spans[1]] = damaged[..., spans[0], spans[1]]
    return mixed


def generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))
