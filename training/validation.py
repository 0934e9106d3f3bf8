"""Validation while training: PSNR, SSIM, LPIPS and grid of a folder of pairs, and sample images to look at."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation import metrics
from evaluation.lpips import LpipsSqueeze


class Validation:
    """Scores an upscaler on `folder/hr` against `folder/<degraded>`; pairs go by the file's stem."""

    def __init__(
        self, folder: Path, lpips_weights: Path, samples: Path, degraded: str = "lr_real", limit: int | None = None
    ):
        hr = {p.stem: p for p in sorted((folder / "hr").iterdir())}
        lr = {p.stem: p for p in sorted((folder / degraded).iterdir())}
        stems = sorted(set(hr) & set(lr))
        if limit is not None and limit < len(stems):
            stems = stems[:: max(1, len(stems) // limit)][:limit]
        self.pairs = [(stem, read(lr[stem]), read(hr[stem])) for stem in stems]
        self.perceptual = LpipsSqueeze(lpips_weights)
        self.samples = samples
        samples.mkdir(parents=True, exist_ok=True)

    @torch.inference_mode()
    def __call__(self, upscale: Callable[[Tensor], Tensor]) -> str:
        """`upscale`: (1, 3, H, W) in [0, 1] -> (1, 3, 4H, 4W). Returns one line of mean scores."""
        rows = []
        for k, (stem, lr_image, hr_image) in enumerate(self.pairs):
            sr_image = to_array(upscale(to_tensor(lr_image)))
            lpips = float(self.perceptual(to_tensor(sr_image), to_tensor(hr_image)))
            rows.append(
                [
                    metrics.psnr_y(sr_image, hr_image),
                    metrics.ssim_y(sr_image, hr_image),
                    lpips,
                    metrics.gmsd(sr_image, hr_image),
                    metrics.grid_excess(sr_image, hr_image),
                ]
            )
            if k < 6:
                Image.fromarray(sr_image).save(self.samples / f"{stem}.png")
        mean = np.mean(rows, axis=0)
        names = ("PSNR-Y", "SSIM-Y", "LPIPS", "GMSD", "grid")
        return "  ".join(f"{name} {value:.3f}" for name, value in zip(names, mean, strict=True))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def to_array(image: Tensor) -> np.ndarray:
    return (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
