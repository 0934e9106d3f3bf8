"""Batches for the denoiser: aligned crops of LR, HR and everything the extractors saw."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.modalities.caption import describe_batch
from models.modalities.perception import PerceptionNet
from models.modalities.rendering import render_depth, render_segmentation
from training.pairs import draw_path, to_batch
from training.stream import SCALE, SIDE, PairPool

TOKEN = 4  # LR pixels per token side


@dataclass(frozen=True)
class GuidedBatch:
    """lr and hr have `margin` tokens more on each side than the rest: convolutions and the codec need them."""

    lr_image: Tensor  # (B, 3, 4(T + 2m), .)
    hr_image: Tensor  # (B, 3, 16(T + 2m), .)
    dino: Tensor  # (B, C, T, T)
    segmentation: Tensor  # (B, 3, 16T, 16T)
    depth: Tensor  # (B, 3, 16T, 16T)
    captions: list[str]

    def to(self, device: torch.device) -> "GuidedBatch":
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def quarter(batch: GuidedBatch, margin: int) -> GuidedBatch:
    """One crop of 2T tokens a side with its margin -> its four quarters of T tokens, each with its margin.

    Row by row: top left, top right, bottom left, bottom right.
    """
    half = batch.dino.shape[-1] // 2

    def cut(image: Tensor, border: int) -> Tensor:
        """`border`: margin in tokens on each side of the whole and of each quarter."""
        cells = image.shape[-1] // (2 * half + 2 * border)
        side, step = (half + 2 * border) * cells, half * cells
        return torch.cat([image[..., y : y + side, x : x + side] for y in (0, step) for x in (0, step)])

    return GuidedBatch(
        lr_image=cut(batch.lr_image, margin),
        hr_image=cut(batch.hr_image, margin),
        dino=cut(batch.dino, 0),
        segmentation=cut(batch.segmentation, 0),
        depth=cut(batch.depth, 0),
        captions=batch.captions * 4,
    )


class GuidedPairs:
    """Reads a folder of `training.pairs` beside the folder of `training.features` made from it."""

    def __init__(self, pairs: Path, features: Path):
        index = json.loads((pairs / "index.json").read_text())
        held_out = set(index["held_out"])
        self.hr = np.load(pairs / "hr.npy", mmap_mode="r")
        self.photographs = np.array([i for i in range(len(self.hr)) if i not in held_out])
        self.draws = []
        for draw in range(index["num_draws"]):
            if not (features / f"captions_{draw:03d}.json").exists():
                break
            arrays = {
                n: np.load(features / f"{n}_{draw:03d}.npy", mmap_mode="r") for n in ("dino", "segmentation", "depth")
            }
            captions = json.loads((features / f"captions_{draw:03d}.json").read_text())
            self.draws.append((np.load(draw_path(pairs, draw), mmap_mode="r"), arrays, captions))
        if not self.draws:
            raise FileNotFoundError(f"no features in {features}; run training.features first")

    def all_captions(self) -> list[str]:
        return [caption for _, _, captions in self.draws for caption in captions]

    def whole(self, count: int = 96) -> tuple[Tensor, Tensor]:
        """LR and HR images spread over the photographs, at least `count` if there are as many: (N, 3, H, W) each."""
        chosen = self.photographs[:: max(1, len(self.photographs) // count)]
        lr, hr = (np.stack([images[i] for i in chosen]) for images in (self.draws[0][0], self.hr))
        return to_batch(list(lr)), to_batch(list(hr))

    def sample_batch(self, rng: np.random.Generator, batch_size: int, tokens: int, margin: int) -> GuidedBatch:
        """Random photographs, draws and token-aligned places; half of them mirrored, features and all."""
        rows = [self.sample(rng, tokens, margin) for _ in range(batch_size)]
        lr, hr, dino, segmentation, depth = (torch.stack([row[k] for row in rows]) for k in range(5))
        size = (16 * tokens, 16 * tokens)
        return GuidedBatch(
            lr_image=lr,
            hr_image=hr,
            dino=dino,
            segmentation=F.interpolate(segmentation, size=size, mode="bilinear", align_corners=False),
            depth=F.interpolate(depth, size=size, mode="bilinear", align_corners=False),
            captions=[row[5] for row in rows],
        )

    def sample(
        self, rng: np.random.Generator, tokens: int, margin: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
        lr_images, arrays, captions = self.draws[rng.integers(len(self.draws))]
        i = int(rng.choice(self.photographs))
        grid = lr_images.shape[1] // TOKEN
        top, left = (int(v) for v in rng.integers(margin, grid - tokens - margin + 1, 2))
        mirrored = rng.random() < 0.5

        def cut(array: np.ndarray, cells: int, border: int) -> np.ndarray:
            """(C, H, W) with `cells` values per token -> the crop, `border` tokens wider on each side."""
            a, b, side = (top - border) * cells, (left - border) * cells, (tokens + 2 * border) * cells
            crop = array[..., a : a + side, b : b + side]
            return crop[..., ::-1] if mirrored else crop

        def image(array: np.ndarray, cells: int, border: int) -> Tensor:
            return torch.from_numpy(cut(array, cells, border).astype(np.float32)) / 255

        return (
            image(lr_images[i].transpose(2, 0, 1), TOKEN, margin),
            image(self.hr[i].transpose(2, 0, 1), 16, margin),
            torch.from_numpy(cut(arrays["dino"][i], 1, 0).astype(np.float32)),
            image(arrays["segmentation"][i], 2, 0),
            image(arrays["depth"][i], 2, 0),
            captions[i],
        )


class PoolLook:
    """What `GuidedPool` keeps of every canvas: the extractors see it whole, as they do when serving.

    network: trained, on the pool's device. names: one per segmentation class, for captions.
    """

    def __init__(self, network: PerceptionNet, names: tuple[str, ...]):
        self.network, self.names = network, names

    def __call__(self, lr_images: Tensor) -> tuple[dict[str, Tensor], list[str]]:
        seen = self.network(lr_images)
        maps = {"segmentation": render_segmentation(seen.segmentation), "depth": render_depth(seen.depth)[:, :1]}
        kept = {name: (image * 255).round().byte() for name, image in maps.items()}
        captions = describe_batch(lr_images, seen.segmentation.softmax(1), self.names)
        return kept | {"dino": seen.dino.half()}, captions


class GuidedPool:
    """The counterpart of `GuidedPairs` over a pool of fresh pairs that was given a `PoolLook`."""

    def __init__(self, pool: PairPool):
        self.pool = pool

    def sample_batch(self, rng: np.random.Generator, batch_size: int, tokens: int, margin: int) -> GuidedBatch:
        """Random canvases and token-aligned places."""
        pool, side = self.pool, tokens + 2 * margin
        drawn = pool.draw(rng, batch_size, SIDE // SCALE // TOKEN - side)
        lr, hr = (drawn.cut(pool.kept[n], c, 0, side) / 255 for n, c in (("lr", TOKEN), ("hr", SCALE * TOKEN)))
        maps = {n: drawn.cut(pool.kept[n], 2, margin, tokens) / 255 for n in ("segmentation", "depth")}
        dino = drawn.cut(pool.kept["dino"], 1, margin, tokens)
        size = (16 * tokens, 16 * tokens)
        maps = {
            name: F.interpolate(image, size=size, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
            for name, image in maps.items()
        }
        return GuidedBatch(lr_image=lr, hr_image=hr, dino=dino, captions=drawn.captions, **maps)

    def all_captions(self) -> list[str]:
        self.pool.refresh()
        return self.pool.captions[: self.pool.num_ready]

    def whole(self, count: int = 96) -> tuple[Tensor, Tensor]:
        """LR and HR canvases, (N, 3, H, W) each."""
        self.pool.refresh()
        count = min(count, self.pool.num_ready)
        return self.pool.kept["lr"][:count].float() / 255, self.pool.kept["hr"][:count].float() / 255
