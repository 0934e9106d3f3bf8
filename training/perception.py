"""Stage 2: PerceptionNet learns from the degraded LR what the teachers saw in the HR, and depth from
rendered scenes.

    python -m training.perception --pairs DIR --teachers DIR --scenes DIR --out DIR --minutes N
    [--validation LR_FOLDER]

Needs `training.pairs`, `training.targets` and `training.scene_cache` first. Writes perception.safetensors
(the averaged
weights, at every validation), names.json (a name per segment class) and state.pt (to resume).
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.modalities.config import SEGMENT_NAMES, PerceptionConfig
from models.modalities.perception import PATCH, PerceptionNet, load_perception, save_perception
from training.loop import LoopConfig, Trainer
from training.pairs import draw_path, to_batch
from training.perception_metrics import validate_depth, validate_photographs
from training.scene_cache import HELD_OUT, SKY_CLASSES
from training.teachers import stem_weights

FEATURE_WEIGHT, SEGMENT_WEIGHT, DEPTH_WEIGHT, SKY_WEIGHT = 1.0, 0.5, 1.0, 0.3


@dataclass(frozen=True)
class PhotographBatch:
    """Degraded photographs and what the teachers saw in the originals."""

    lr_image: Tensor  # (B, 3, c, c) in [0, 1]
    features: Tensor  # (B, Cd, c/4, c/4), unit mean square
    segments: Tensor  # (B, S, c/2, c/2) probabilities


class PhotographData:
    """Random crops of the pair cache with the teachers' targets, aligned to tokens; mirrored left and
    right only.

    Not turned or flipped up and down: that the sky is above is among the things to learn.
    """

    def __init__(self, pairs: Path, teachers: Path) -> None:
        self._index, self._folder = json.loads((pairs / "index.json").read_text()), pairs
        self._draws: list[np.ndarray] = []
        names = (teachers / "names.txt").read_text().splitlines()
        self._features = np.load(teachers / "features.npy", mmap_mode="r")
        self._segments = np.load(teachers / "segments.npy", mmap_mode="r")
        self.feature_scale = float(np.sqrt(np.mean(self._features[::8].astype(np.float32) ** 2)))
        self._rows = np.array([names.index(name) for name in self._index["names"]])
        held_out = set(self._index["held_out"])
        self._training = np.array([i for i in range(len(self._rows)) if i not in held_out])

    def _refresh(self) -> None:
        """Open the draws that were finished since the last batch."""
        while (path := draw_path(self._folder, len(self._draws))).exists():
            self._draws.append(np.load(path, mmap_mode="r"))

    def sample(self, rng: np.random.Generator, batch_size: int, crop: int) -> PhotographBatch:
        """crop: LR pixels, a multiple of 4."""
        self._refresh()
        lr_images, features, segments = [], [], []
        for _ in range(batch_size):
            i = rng.choice(self._training)
            source = self._draws[rng.integers(len(self._draws))][i]
            top, left = (PATCH * int(rng.integers((side - crop) // PATCH + 1)) for side in source.shape[:2])
            mirror = slice(None, None, -1 if rng.random() < 0.5 else 1)
            lr_images.append(source[top : top + crop, left : left + crop][:, mirror])
            features.append(_window(self._features[self._rows[i]], top // 4, left // 4, crop // 4)[:, mirror])
            segments.append(_window(self._segments[self._rows[i]], top // 2, left // 2, crop // 2)[:, mirror])
        return PhotographBatch(to_batch(lr_images), _stack(features) / self.feature_scale, _sharpen(_stack(segments)))


class SceneData:
    """Random crops of the rendered scenes that are finished, mirrored left and right."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lr_images = np.load(folder / "scenes_lr.npy", mmap_mode="r")  # (num, draws, h, w, 3)
        self.depths = np.load(folder / "scenes_depth.npy", mmap_mode="r")  # (num, h/2, w/2)

    def sample(self, rng: np.random.Generator, batch_size: int, crop: int) -> tuple[Tensor, Tensor]:
        """lr_image (B, 3, c, c) in [0, 1], inverse depth (B, 1, c/2, c/2) with 1 for the nearest of the
        view.
        """
        ready = int((self._folder / "scenes_ready.txt").read_text())
        if ready <= HELD_OUT:
            raise FileNotFoundError(f"only {ready} scenes in {self._folder}: wait for training.scene_cache")
        lr_images, depths = [], []
        for _ in range(batch_size):
            i, draw = rng.integers(HELD_OUT, ready), rng.integers(self.lr_images.shape[1])
            mirror = slice(None, None, -1 if rng.random() < 0.5 else 1)
            top, left = (PATCH * int(rng.integers((s - crop) // PATCH + 1)) for s in self.lr_images.shape[2:4])
            lr_images.append(_window(self.lr_images[i, draw], top, left, crop)[:, mirror])
            depths.append(_window(self.depths[i][..., None], top // 2, left // 2, crop // 2)[:, mirror])
        depth = _stack(depths)
        nearest = depth.flatten(1).quantile(0.99, dim=1).clamp(min=1e-4)
        return to_batch(lr_images), (depth / nearest[:, None, None, None]).clamp(0, 1)


def _window(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return image[top : top + side, left : left + side]


def _stack(images: list[np.ndarray]) -> Tensor:
    """(h, w, C) arrays -> (B, C, h, w) float32."""
    return torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2)


def _sharpen(segments: Tensor) -> Tensor:
    """Squared and normalised: the probe's answers are right more often than its probabilities say."""
    squared = (segments / 255) ** 2
    return squared / squared.sum(dim=1, keepdim=True).clamp(min=1e-6)


def feature_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cosine per token, and a little squared error so that the length means something too."""
    cosine = F.cosine_similarity(predicted, target, dim=1)
    return (1 - cosine).mean() + 0.1 * F.mse_loss(predicted, target)


def segment_loss(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy against soft classes, both (B, S, h, w)."""
    return -(probabilities * logits.log_softmax(dim=1)).sum(dim=1).mean()


def depth_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Inverse depth (B, 1, h, w): blind to scale and shift (MiDaS), its gradients, and lightly the values
    themselves.
    """
    aligned, wanted = _standardise(predicted), _standardise(target)
    edges = sum((aligned.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean() for axis in (2, 3))
    return (aligned - wanted).abs().mean() + 0.5 * edges + 0.5 * (predicted - target).abs().mean()


def _standardise(depth: Tensor) -> Tensor:
    """Median 0 and mean absolute deviation 1 per image."""
    centre = depth.flatten(1).median(dim=1).values[:, None, None, None]
    spread = (depth - centre).abs().mean(dim=(1, 2, 3), keepdim=True)
    return (depth - centre) / spread.clamp(min=0.02)


def sky_loss(depth: Tensor, segments: Tensor) -> Tensor:
    """Sky, clouds and night sky in photographs are infinitely far: inverse depth 0. The only depth taught
    on photographs.
    """
    sky = segments[:, SKY_CLASSES].sum(dim=1, keepdim=True)
    return (depth * (sky > 0.7)).mean()


class Step:
    """One training step: photographs for features, segments and sky; scenes for depth."""

    def __init__(
        self, photographs: PhotographData, scenes: SceneData, seed: int, crop: int, num: tuple[int, int]
    ) -> None:
        self._photographs, self._scenes = photographs, scenes
        self._rng, self._crop, self._num = np.random.default_rng(seed), crop, num

    def __call__(self, network: nn.Module) -> dict[str, Tensor]:
        batch = self._photographs.sample(self._rng, self._num[0], self._crop)
        scene_lr, scene_depth = self._scenes.sample(self._rng, self._num[1], self._crop)
        count = len(batch.lr_image)
        seen = network(torch.cat([batch.lr_image, scene_lr]))
        losses = {
            "dino": feature_loss(seen.dino[:count], batch.features),
            "segmentation": segment_loss(seen.segmentation[:count], batch.segments),
            "depth": depth_loss(seen.depth[count:], scene_depth),
            "sky": sky_loss(seen.depth[:count], batch.segments),
        }
        weights = (FEATURE_WEIGHT, SEGMENT_WEIGHT, DEPTH_WEIGHT, SKY_WEIGHT)
        total = sum(weight * loss for weight, loss in zip(weights, losses.values(), strict=True))
        return {"loss": total, **losses}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "teachers", "scenes", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="folder of LR photographs that the teachers saw in HR")
    parser.add_argument(
        "--nets", type=Path, help="folder of the teachers: the stem starts from MobileNetV2's own weights"
    )
    parser.add_argument("--init", type=Path, help="perception.safetensors to go on from, with a fresh schedule")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--crop", type=int, default=64, help="LR pixels, a multiple of 4")
    parser.add_argument("--photographs-per-step", type=int, default=8)
    parser.add_argument("--scenes-per-step", type=int, default=4)
    parser.add_argument("--validate-minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    photographs, scenes = PhotographData(args.pairs, args.teachers), SceneData(args.scenes)
    num = (args.photographs_per_step, args.scenes_per_step)
    config = LoopConfig(
        num_steps=10**9,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        weight_decay=0.02,
        ema_decay=0.998,
        log_every=20,
        warmup_steps=60,
        validate_minutes=args.validate_minutes,
    )
    network = PerceptionNet(PerceptionConfig())
    if args.init:
        network.load_state_dict(load_perception(args.init).state_dict())
    elif args.nets:
        network.stem.load_state_dict(stem_weights(args.nets))
    trainer = Trainer(network, config, args.out, sum(num))
    (args.out / "names.json").write_text(json.dumps(SEGMENT_NAMES))

    def validate(averaged: PerceptionNet) -> str:
        save_perception(averaged, args.out / "perception.safetensors", {"step": str(trainer.step_index)})
        report = {**validate_depth(averaged, scenes)}
        if args.validation:
            report |= validate_photographs(averaged, args.validation, args.teachers)
        return "  ".join(f"{name} {value:.3f}" for name, value in report.items())

    # the stream of samples differs after a resume: the step number is part of the seed
    trainer.run(Step(photographs, scenes, args.seed + trainer.step_index, args.crop, num), validate)


if __name__ == "__main__":
    main()
