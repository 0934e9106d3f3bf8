"""Pairs of degraded image and photograph on disk: a resumable generator and the dataset that reads them back.

Generator: `python -m training.pairs`. A folder holds, all uint8, `hr.npy` (num, H, W, 3), one file per draw
`lr_000.npy`, `lr_001.npy`, ... (num, h, w, 3), and `index.json`. A file carries its final name only when
complete, so training can start after draw 0 while the others are being written.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from training.degradation import RECIPES, DegradationConfig, degrade

PHOTOGRAPH_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class PairDataset:
    """Memory-mapped pairs of a folder written by `write_pairs`; draws that finish later are picked up.

    `flat_probability` is the share of samples replaced by one constant colour on both sides, so that flat
    areas stay flat.
    """

    def __init__(self, folder: Path | str, flat_probability: float = 0.01) -> None:
        self.folder = Path(folder)
        self.flat_probability = flat_probability
        self.index = json.loads((self.folder / "index.json").read_text())
        self.scale: int = self.index["config"]["scale"]
        self._hr = np.load(self.folder / "hr.npy", mmap_mode="r")
        self._draws: list[np.ndarray] = []
        self.refresh()
        if not self._draws:
            raise FileNotFoundError(f"no finished draw lr_000.npy in {self.folder} yet")
        held_out = set(self.index["held_out"])
        self._training = np.array([i for i in range(len(self._hr)) if i not in held_out])
        if not len(self._training):
            raise ValueError(f"all {len(self._hr)} photographs of {self.folder} are held out")

    @property
    def num_draws(self) -> int:
        """Degraded versions of each photograph that are ready."""
        return len(self._draws)

    @property
    def training(self) -> list[int]:
        """Photographs that are not held out."""
        return self._training.tolist()

    @property
    def held_out(self) -> list[int]:
        """Photographs that are never sampled, for choosing a model."""
        return list(self.index["held_out"])

    def pair(self, photograph: int, draw: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lr (3, h, w) and hr (3, H, W) of one photograph, whole, float32 in [0, 1]."""
        return to_batch([self._draws[draw][photograph]])[0], to_batch([self._hr[photograph]])[0]

    def refresh(self) -> None:
        """Open the draws that were finished since the last call."""
        while self.num_draws < self.index["num_draws"]:
            path = draw_path(self.folder, self.num_draws)
            if not path.exists():
                return
            self._draws.append(np.load(path, mmap_mode="r"))

    def sample_batch(
        self, rng: np.random.Generator, batch_size: int, lr_crop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lr (B, 3, c, c) and hr (B, 3, scale c, scale c), float32 in [0, 1], with c = `lr_crop`.

        Photograph, draw, aligned crop and one of eight flips and quarter turns are random.
        """
        self.refresh()
        pairs = [self._sample(rng, lr_crop) for _ in range(batch_size)]
        return to_batch([lr for lr, _ in pairs]), to_batch([hr for _, hr in pairs])

    def holdout(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs never sampled, for choosing a model: (lr (3, h, w), hr (3, H, W)), always from draw 0."""
        return [self.pair(i) for i in self.held_out]

    def _sample(self, rng: np.random.Generator, lr_crop: int) -> tuple[np.ndarray, np.ndarray]:
        hr_crop = lr_crop * self.scale
        if rng.random() < self.flat_probability:
            colour = rng.integers(0, 256, 3, dtype=np.uint8)
            return np.tile(colour, (lr_crop, lr_crop, 1)), np.tile(colour, (hr_crop, hr_crop, 1))
        lr_images = self._draws[rng.integers(self.num_draws)]
        i = rng.choice(self._training)
        top = rng.integers(lr_images.shape[1] - lr_crop + 1)
        left = rng.integers(lr_images.shape[2] - lr_crop + 1)
        lr = lr_images[i, top : top + lr_crop, left : left + lr_crop]
        top, left = top * self.scale, left * self.scale
        hr = self._hr[i, top : top + hr_crop, left : left + hr_crop]
        turns, flip = rng.integers(4), rng.random() < 0.5
        return turn(lr, turns, flip), turn(hr, turns, flip)


def turn(image: np.ndarray, quarter_turns: int, flip: bool) -> np.ndarray:
    """Rotate (H, W, 3) by quarter turns, then mirror left and right if `flip`."""
    image = np.rot90(image, quarter_turns)
    return image[:, ::-1] if flip else image


def to_batch(images: list[np.ndarray]) -> torch.Tensor:
    """Stack uint8 (H, W, 3) images to (B, 3, H, W) float32 in [0, 1]."""
    stacked = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    return torch.from_numpy(stacked).float() / 255


def draw_path(folder: Path, draw: int) -> Path:
    """Where the degraded images of one draw lie."""
    return folder / f"lr_{draw:03d}.npy"


def write_pairs(
    photographs: Path,
    out: Path,
    num_draws: int,
    seed: int,
    num_held_out: int = 20,
    num_workers: int = 1,
    recipe: str = "mixed",
    size: int = 512,
) -> None:
    """Write all pairs of a folder of photographs; finished files are kept, so it can be called again.

    Photographs are centre-cropped (never resized) to (size, size); smaller ones are skipped with a message.
    Every image is seeded by (seed, draw, position), so the result does not depend on `num_workers`.
    """
    config = RECIPES[recipe]()
    if size % (4 * config.scale):
        raise ValueError(f"size {size} is no multiple of {4 * config.scale}")
    out.mkdir(parents=True, exist_ok=True)
    paths = find_photographs(photographs, size)
    if not paths:
        raise ValueError(f"no photograph of at least {size} x {size} in {photographs}")
    names = [path.name for path in paths]
    index = {
        "names": names,
        "seed": seed,
        "num_draws": num_draws,
        "recipe": recipe,
        "size": size,
        "held_out": choose_held_out(names, num_held_out, seed),
        "config": dataclasses.asdict(config),
    }
    write_index(out, index)
    write_hr(out / "hr.npy", paths, size)
    missing = [draw for draw in range(num_draws) if not draw_path(out, draw).exists()]
    progress = Progress(total=len(missing) * len(paths), label="pairs")
    with _mapper(num_workers) as mapper:
        for draw in missing:
            lr_images = mapper(partial(_degrade_one, out / "hr.npy", config, seed, draw), range(len(paths)))
            lr_size = size // config.scale
            write_array(draw_path(out, draw), (len(paths), lr_size, lr_size, 3), progress.watch(lr_images))
    progress.close()


def find_photographs(folder: Path, size: int) -> list[Path]:
    """Photographs of a folder in name order; those with a side under `size` pixels are named and left out."""
    paths = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PHOTOGRAPH_SUFFIXES:
            continue
        with Image.open(path) as image:
            if min(image.size) >= size:
                paths.append(path)
            else:
                print(f"skipped {path.name}: {image.width} x {image.height} is under {size} x {size}")
    return paths


def choose_held_out(names: list[str], count: int, seed: int) -> list[int]:
    """Positions kept out of training: whole photographs (`<photograph>_<crop>.jpg`), at least `count` files.

    Photographs with the fewest crops go first, in random order: more different scenes for the same loss of
    training data, and no held-out scene is also trained on.
    """
    groups = [Path(name).stem.rpartition("_")[0] or name for name in names]
    sizes = Counter(groups)
    order = np.random.default_rng(seed).permutation(sorted(sizes))
    held_out: list[int] = []
    for group in sorted(order, key=lambda group: sizes[group]):
        if len(held_out) >= count:
            break
        held_out += [i for i, name in enumerate(groups) if name == group]
    return sorted(held_out)


def write_index(out: Path, index: dict) -> None:
    """Write `index.json`, or check that the one there tells of the same pairs (more draws are fine)."""
    path = out / "index.json"
    index = json.loads(json.dumps(index))  # tuples to lists, as they come back from the file
    if path.exists():
        before = json.loads(path.read_text())
        differing = [key for key in index if key != "num_draws" and before.get(key) != index[key]]
        if differing:
            raise ValueError(f"{out} holds pairs with other {', '.join(differing)}: use another folder")
        index["num_draws"] = max(index["num_draws"], before["num_draws"])
    partial_path = path.with_suffix(".part")
    partial_path.write_text(json.dumps(index, indent=1))
    os.replace(partial_path, path)


def write_hr(path: Path, photographs: list[Path], size: int) -> None:
    """Write the centre crops of all photographs, unless done before."""
    if not path.exists():
        progress = Progress(total=len(photographs), label="photographs")
        crops = (load_centre_crop(photograph, size) for photograph in photographs)
        write_array(path, (len(photographs), size, size, 3), progress.watch(crops))
        progress.close()


def load_centre_crop(path: Path, size: int) -> np.ndarray:
    """Read the middle (size, size, 3) of a photograph, uint8 RGB."""
    with Image.open(path) as image:
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return np.asarray(image.convert("RGB").crop((left, top, left + size, top + size)))


def write_array(path: Path, shape: tuple[int, ...], images: Iterator[np.ndarray]) -> None:
    """Write uint8 images as one .npy of `shape`; it appears under its name only when all are in."""
    partial_path = path.with_suffix(".part")
    array = np.lib.format.open_memmap(partial_path, mode="w+", dtype=np.uint8, shape=shape)
    for i, image in enumerate(images):
        array[i] = image
    array.flush()
    os.replace(partial_path, path)


class Progress:
    """A line with done, total and seconds left, at most once in `interval` seconds."""

    def __init__(self, total: int, label: str, interval: float = 5.0) -> None:
        self.total, self.label, self.interval = total, label, interval
        self.done = 0
        self._started = self._printed = time.monotonic()

    def watch(self, images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass the images on, counting."""
        for image in images:
            yield image
            self.done += 1
            now = time.monotonic()
            if now - self._printed >= self.interval:
                self._printed = now
                left = (now - self._started) / self.done * (self.total - self.done)
                print(f"{self.label} {self.done}/{self.total}, {left:.0f} s left", flush=True)

    def close(self) -> None:
        """Print the last line."""
        seconds = time.monotonic() - self._started
        print(f"{self.label} {self.done}/{self.total}, done in {seconds:.0f} s", flush=True)


@contextmanager
def _mapper(num_workers: int) -> Iterator[Callable[..., Iterator[np.ndarray]]]:
    """Give an ordered map: the plain one, or that of a pool."""
    if num_workers == 1:
        yield map
        return
    # Not fork: the parent has imported torch, whose threads do not survive one.
    with multiprocessing.get_context("spawn").Pool(num_workers, initializer=_start_worker) as pool:
        yield partial(pool.imap, chunksize=4)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the pool is the parallelism


def _degrade_one(hr_path: Path, config: DegradationConfig, seed: int, draw: int, i: int) -> np.ndarray:
    """Degrade photograph `i` for one draw, uint8 (h, w, 3)."""
    hr_image = np.load(hr_path, mmap_mode="r")[i].astype(np.float32) / 255
    rng = np.random.default_rng((seed, draw, i))
    return np.rint(degrade(hr_image, config, rng) * 255).astype(np.uint8)


def main() -> None:
    """Command line of the generator."""
    parser = argparse.ArgumentParser(prog="python -m training.pairs", description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pairs")
    parser.add_argument("--draws", type=int, required=True, help="degraded versions of each photograph")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--holdout", type=int, default=20, help="photographs kept out of training")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="mixed")
    parser.add_argument("--size", type=int, default=512, help="side of the photographs' centre crop")
    args = parser.parse_args()
    write_pairs(
        args.photographs,
        args.out,
        args.draws,
        args.seed,
        num_held_out=args.holdout,
        num_workers=args.workers,
        recipe=args.recipe,
        size=args.size,
    )


if __name__ == "__main__":
    main()
