"""Rendered scenes, degraded like photographs, on disk: written by one process while another trains.

`scenes_lr.npy` (num, draws, h, w, 3) uint8 and `scenes_depth.npy` (num, h/2, w/2) float16 inverse depth (1
/ camera heights);
`scenes_ready.txt` holds how many are finished. The first `HELD_OUT` scenes are never trained on.

    python -m training.scene_cache --pairs FOLDER --teachers FOLDER --out FOLDER --count N
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from models.modalities.config import SEGMENT_NAMES
from training.degradation import degrade, mixed_x4
from training.scene_sampling import sample_scene
from training.scenes import Renderer

HELD_OUT = 40
DRAWS = 2
SKY_CLASSES = [SEGMENT_NAMES.index(name) for name in ("sky", "clouds", "night sky")]


def sky_photographs(segments: np.ndarray, least: float = 0.9) -> np.ndarray:
    """segments (num, 64, 64, S) uint8 -> indices of photographs that are nearly all sky."""
    return np.flatnonzero(segments[..., SKY_CLASSES].sum(axis=-1, dtype=np.float32).mean(axis=(1, 2)) > 255 * least)


def load_renderer(pairs: Path, teachers: Path) -> Renderer:
    """Textures and skies from the training photographs; held-out ones are left out."""
    import json

    index = json.loads((pairs / "index.json").read_text())
    names = (teachers / "names.txt").read_text().splitlines()
    hr_images = np.load(pairs / "hr.npy", mmap_mode="r")
    segments = np.load(teachers / "segments.npy", mmap_mode="r")
    rows = np.array([names.index(name) for name in index["names"]])
    skies = set(sky_photographs(segments[rows]).tolist())
    kept = [i for i in range(len(hr_images)) if i not in set(index["held_out"])]

    def shrink(indices: list[int]) -> np.ndarray:
        return np.stack([cv2.resize(hr_images[i], (256, 256), interpolation=cv2.INTER_AREA) for i in indices])

    sky = [i for i in kept if i in skies]
    return Renderer(shrink([i for i in kept if i not in skies][::3]), shrink(sky) if sky else None)


def write_scenes(renderer: Renderer, out: Path, count: int, side: int, seed: int) -> None:
    """Render `count` scenes of side x side HR pixels; goes on where an earlier run stopped."""
    out.mkdir(parents=True, exist_ok=True)
    ready = out / "scenes_ready.txt"
    done = int(ready.read_text()) if ready.exists() else 0
    mode = "r+" if done else "w+"
    lr_shape, depth_shape = (count, DRAWS, side // 4, side // 4, 3), (count, side // 8, side // 8)
    lr_images = np.lib.format.open_memmap(out / "scenes_lr.npy", mode, np.uint8, lr_shape)
    depths = np.lib.format.open_memmap(out / "scenes_depth.npy", mode, np.float16, depth_shape)
    config, start = mixed_x4(), time.monotonic()
    for number in range(done, count):
        rng = np.random.default_rng([seed, number])
        view = renderer.render(sample_scene(rng, renderer), side)
        depths[number] = cv2.resize(view.inverse_depth, depth_shape[:0:-1], interpolation=cv2.INTER_AREA)
        for draw in range(DRAWS):
            lr_images[number, draw] = np.round(255 * degrade(view.image, config, rng))
        ready.write_text(str(number + 1))
        if number % 25 == 24:
            left = (time.monotonic() - start) / (number + 1 - done) * (count - number - 1)
            print(f"scenes {number + 1}/{count}, {left:.0f} s left", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256, help="HR pixels, a multiple of 32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    renderer = load_renderer(arguments.pairs, arguments.teachers)
    print(f"{renderer.num_textures} textures, {renderer.num_skies} skies", flush=True)
    write_scenes(renderer, arguments.out, arguments.count, arguments.side, arguments.seed)


if __name__ == "__main__":
    main()
