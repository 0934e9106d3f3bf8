"""What an SR image is judged by in training: one weighted sum that the coarse network and the denoiser share."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from evaluation.lpips import LpipsSqueeze
from models.routing.coarse import upscale
from training.adversarial import Adversary, AdversaryConfig
from training.losses import (
    charbonnier,
    cleanness,
    consistency_loss,
    edge_loss,
    grid_loss,
    pattern_loss,
    robust_perceptual,
    structure_loss,
)


@dataclass(frozen=True, kw_only=True)
class ImageLossWeights:
    """Weights beside the pixel loss, which has 1; 0 is off. See `training.losses` for each."""

    lpips: float = 0.0
    adversarial: float = 0.0
    edge: float = 0.0
    grid: float = 0.0
    pattern: float = 0.0
    structure: float = 0.0
    consistency: float = 0.0
    # moves lpips and adversarial to crops whose LR image is clean: there what is sharp can be known, elsewhere it is
    # guessed. In [0, 1]; a crop counts 1 - focus to 1 + focus times by its `cleanness`
    clean_focus: float = 0.0

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        for field in fields(cls):
            parser.add_argument(option(field.name), type=float, default=field.default, metavar="W")
        parser.add_argument("--lpips", type=Path, help="weights of LPIPS-squeeze, .npz")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "ImageLossWeights":
        names = [field.name for field in fields(cls)]
        return cls(**{name: getattr(args, option(name)[2:].replace("-", "_")) for name in names})


def option(name: str) -> str:
    return "--clean-focus" if name == "clean_focus" else f"--{name}-weight"


TERMS = {"edge": edge_loss, "grid": grid_loss, "pattern": pattern_loss, "structure": structure_loss}


ADVERSARY_SIDE = 128  # px of the crop that the adversary sees: it learns faster than the network as it is


class ImageLosses:
    """Called with aligned crops of SR and HR (B, 3, H, W), H and W multiples of 32, and of the LR image.

    Raises ValueError when LPIPS has a weight and `lpips` names no file.
    """

    def __init__(self, weights: ImageLossWeights, lpips: Path | None, seed: int, device: torch.device | str = "cpu"):
        if weights.lpips > 0 and lpips is None:
            raise ValueError("--lpips-weight needs --lpips, the weights of LPIPS-squeeze")
        self.weights = weights
        self.perceptual = LpipsSqueeze(lpips).to(device) if lpips is not None and weights.lpips > 0 else None
        self.adversary = Adversary(AdversaryConfig(), device) if weights.adversarial > 0 else None
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, sr_image: Tensor, hr_image: Tensor, lr_image: Tensor) -> dict[str, Tensor]:
        """Every term, and "loss", their weighted sum. With an adversary, that learns from the batch too."""
        weights, losses = self.weights, {"pixel": charbonnier(sr_image, hr_image)}
        upscaled, total = upscale(lr_image, sr_image.shape[-1] // lr_image.shape[-1]), losses["pixel"]
        importance = torch.ones(len(sr_image), device=sr_image.device)
        if weights.clean_focus > 0:
            importance = 1 + weights.clean_focus * (2 * cleanness(upscaled, hr_image) - 1)
        for name, term in TERMS.items():
            if (weight := getattr(weights, name)) > 0:
                losses[name] = term(sr_image, hr_image)
                total = total + weight * losses[name]
        if weights.consistency > 0:
            losses["consistency"] = consistency_loss(sr_image, lr_image)
            total = total + weights.consistency * losses["consistency"]
        if self.perceptual is not None:
            with half_precision(sr_image.device):
                perceptual = robust_perceptual(self.perceptual, sr_image, hr_image, self.generator).float()
            losses["lpips"] = perceptual.mean()
            total = total + weights.lpips * (importance * perceptual).mean()
        if self.adversary is not None:
            seen = self.cut(sr_image, hr_image, upscaled)
            with half_precision(sr_image.device):
                losses["discriminator"] = self.adversary.improve(*seen)
                adversarial = self.adversary.judge(*seen)
            losses["adversarial"] = adversarial.mean()
            total = total + weights.adversarial * (importance * adversarial).mean()
        return losses | {"loss": total}

    def cut(self, *images: Tensor) -> list[Tensor]:
        """The same random crop of every image, at an even place, as the adversary unfolds 2 x 2 px."""
        height, width = images[0].shape[-2:]
        top, left = (
            2 * int(torch.randint(0, max(1, (side - ADVERSARY_SIDE) // 2 + 1), (), generator=self.generator))
            for side in (height, width)
        )
        return [image[..., top : top + ADVERSARY_SIDE, left : left + ADVERSARY_SIDE] for image in images]


def half_precision(device: torch.device) -> torch.autocast:
    """Convolutions and matrix products in bfloat16; sums and comparisons of images stay outside, in float32."""
    return torch.autocast(device.type, torch.bfloat16)
