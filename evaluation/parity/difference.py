"""How far one of our tensors is from the official one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-4
ONE_LEVEL = 1 / TOLERANCE  # scale for bytes: rounding may turn the smallest difference into one level


class UnknownFolderError(Exception):
    """A folder that is no fixture, or a broken one; the message says why."""


@dataclass(frozen=True)
class Difference:
    """largest: of |ours - official|, infinite when there is nothing to compare. scale: of the tolerance."""

    name: str
    largest: float
    scale: float = 1.0

    @property
    def allowed(self) -> float:
        return TOLERANCE * self.scale

    @property
    def is_within(self) -> bool:
        return self.largest <= self.allowed


@dataclass(frozen=True)
class Kind:
    """One kind of fixture. is_it: whether a folder is of it. compare: everything there is to compare in the folder."""

    name: str
    is_it: Callable[[Path], bool]
    compare: Callable[[Path], Iterator[Difference]]


def compare(name: str, ours: Tensor | None, official: Tensor, scale: float = 1.0) -> Difference:
    """Ours beside the official one; `scale` is above 1 where the values are much larger than 1, or are bytes."""
    if ours is None or ours.shape != official.shape:
        return Difference(name, float("inf"))
    largest = (ours.double() - official.double()).abs().max().item() if official.numel() else 0.0
    return Difference(name, float("inf") if largest != largest else largest, scale)


def compare_all(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Iterator[Difference]:
    for name, value in official.items():
        yield compare(name, ours.get(name), value)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of a fixture. Raises UnknownFolderError when it is missing or broken."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UnknownFolderError(f"{path} cannot be read ({error})") from error


def levels(image: Tensor) -> Tensor:
    """A picture in [0, 1], truncated to the 256 levels of a byte as torchvision's ToPILImage does it."""
    return (image * 255).to(torch.uint8)
