"""Folders of pairs: `hr/` beside one or several degraded copies `lr*/`, paired by the stem of the file's name."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from evaluation.errors import EvaluationError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class Pair:
    stem: str
    lr: Path
    hr: Path


def find_images(folder: Path) -> dict[str, Path]:
    """Image files of a folder by stem, in order."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def find_sets(folder: Path, names: tuple[str, ...] = (), limit: int | None = None) -> dict[str, list[Pair]]:
    """The pairs of each degraded copy under `folder`, all of them or those named.

    limit: takes that many pairs, spread evenly. Raises EvaluationError when there is nothing to pair.
    """
    if not (folder / "hr").is_dir():
        raise EvaluationError(f"{folder} has no folder hr/: put the HR images there and the degraded ones into lr*/")
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith("lr"))
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing or not (names or found):
        has = ", ".join(found) or "none"
        raise EvaluationError(f"{folder} has no folder {missing[0] if missing else 'lr*'}/; it has {has}")
    hr = find_images(folder / "hr")
    sets = {}
    for name in names or found:
        lr = find_images(folder / name)
        pairs = [Pair(stem, lr[stem], hr[stem]) for stem in hr if stem in lr]
        if not pairs:
            raise EvaluationError(f"no image of {folder / name} has the name of one in {folder / 'hr'}")
        sets[name] = spread(pairs, limit)
    return sets


def spread(pairs: list[Pair], limit: int | None) -> list[Pair]:
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[int(index)] for index in np.linspace(0, len(pairs) - 1, limit).round()]


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB. Raises EvaluationError when the file is no image."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise EvaluationError(f"{path} cannot be read as an image: {error}") from error


def to_float(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return image.astype(np.float32) / 255


def to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (image.clip(0, 1) * 255).round().astype(np.uint8)
