"""More photographs from few: mosaics of pieces at several scales, turned, mirrored and in other colours.

    python -m training.mosaics --photographs DIR --out DIR --num 2400 [--without NAME ...] [--seed 0]

Networks that have seen a few hundred photographs many times learn these photographs: their error falls on fresh
degradations of them and stays on others. A piece that is shrunk first has finer texture per pixel than any photograph
of the folder, as sharp pictures of a larger sensor have. Seams between pieces are edges like others.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.pairs import find_photographs

SIDE = 512
SCALES = (0.4, 1.0)  # of a piece; those that are not shrunk have 1
SHRUNK_SHARE, COLOURED_SHARE = 0.7, 0.5
GAMMAS = (0.7, 1.4)


def mosaic(photographs: Sequence[NDArray[np.uint8]], rng: np.random.Generator, side: int = SIDE) -> NDArray[np.uint8]:
    """(side, side, 3) uint8 of four pieces that meet at a random place within the middle half; photographs (H, W, 3).

    Any pixel may be the place: seams at multiples of 4 would teach a network that edges lie on its LR grid.
    """
    canvas = np.empty((side, side, 3), np.uint8)
    row, column = (int(v) for v in rng.integers(side // 4, side * 3 // 4 + 1, 2))
    for rows in (slice(0, row), slice(row, side)):
        for columns in (slice(0, column), slice(column, side)):
            photograph = photographs[int(rng.integers(len(photographs)))]
            size = rows.stop - rows.start, columns.stop - columns.start
            canvas[rows, columns] = recolour(cut_piece(photograph, size, rng), rng)
    return canvas


def cut_piece(photograph: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A piece of `size` (rows, columns), shrunk as far as the photograph is large enough; one of eight orientations."""
    photograph = np.rot90(photograph, int(rng.integers(4)))
    if rng.random() < 0.5:
        photograph = photograph[:, ::-1]
    smallest = max(SCALES[0], size[0] / photograph.shape[0], size[1] / photograph.shape[1])
    if smallest > 1:
        raise ValueError(f"a photograph of {photograph.shape[:2]} px is smaller than the piece {size}")
    scale = float(rng.uniform(smallest, SCALES[1])) if rng.random() < SHRUNK_SHARE else 1.0
    sides = [min(limit, int(np.ceil(length / scale))) for length, limit in zip(size, photograph.shape, strict=False)]
    top, left = (int(rng.integers(n - m + 1)) for n, m in zip(photograph.shape, sides, strict=False))
    piece = np.ascontiguousarray(photograph[top : top + sides[0], left : left + sides[1]])
    return piece if scale == 1.0 else cv2.resize(piece, size[::-1], interpolation=cv2.INTER_AREA)


def recolour(piece: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Half of the pieces: channels in another order, and another gamma for each."""
    if rng.random() >= COLOURED_SHARE:
        return piece
    gammas = rng.uniform(*GAMMAS) * rng.uniform(0.9, 1.1, 3)
    table = np.rint(255 * (np.arange(256)[:, None] / 255) ** gammas).astype(np.uint8)
    shuffled = piece[..., rng.permutation(3)]
    return np.stack([table[shuffled[..., c], c] for c in range(3)], -1)


def read_photographs(folder: Path, without: set[str], side: int = SIDE) -> list[NDArray[np.uint8]]:
    """All photographs of a folder with `side` px or more, but those whose file name is in `without`.

    Raises FileNotFoundError if none is left.
    """
    paths = [path for path in find_photographs(folder, side) if path.name not in without]
    if not paths:
        raise FileNotFoundError(f"no photographs in {folder}")
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of PNG files")
    parser.add_argument("--num", type=int, required=True)
    parser.add_argument("--without", nargs="*", default=[], help="file names that must not be used: what is held out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    photographs = read_photographs(args.photographs, set(args.without))
    args.out.mkdir(parents=True, exist_ok=True)
    for i in range(args.num):
        image = mosaic(photographs, np.random.default_rng((args.seed, i)))
        Image.fromarray(image).save(args.out / f"m{i:05d}.png", compress_level=1)


if __name__ == "__main__":
    main()
