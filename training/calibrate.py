"""The last stage: a map from U (Eq. 13) and the look of a patch to its expected error, fitted in closed form.

    python -m training.calibrate --pairs DIR --out FILE [--profile DIR] [--images N] [--force]

Runs the whole pipeline on training pairs, regresses the logarithm of each patch's mean |SR - HR| on the features of
`models.routing.calibration`, and compares the result with U itself on the photographs held out of training. The file is
written only if it sorts their patches better than U, by rank correlation and by risk-coverage alike. It belongs beside
the checkpoint that it was fitted to, as `uncertainty.json`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.audit import patch_errors
from evaluation.statistics import rank_quality
from models.pipeline import Upscaler
from models.requests import UpscaleOptions
from models.routing.calibration import UncertaintyCalibration, expand, measure
from training.pairs import draw_path

ERROR_FLOOR = 1e-3  # joins the error before its logarithm: a quarter of an 8-bit step
RIDGE = 1e-3
FloatImage = NDArray[np.float32]


@dataclass(frozen=True)
class Patches:
    """features (N, F), errors (N,) and raw uncertainty (N,) of the patches of many images."""

    features: Tensor
    errors: Tensor
    uncertainty: Tensor


def collect(upscaler: Upscaler, images: Iterable[tuple[FloatImage, FloatImage]]) -> Patches:
    """Runs the pipeline on (LR, HR) images in [0, 1], of at most one region, and looks at every patch."""
    features, errors, uncertainty = [], [], []
    for lr_image, hr_image in images:
        sr_image = upscaler.upscale(lr_image, UpscaleOptions()).sr_image
        with torch.inference_mode():
            lr = torch.from_numpy(lr_image).permute(2, 0, 1)[None].to(upscaler.device)
            upscaled, coarse_sr, raw = upscaler.network.estimate(lr)
            measured = measure(lr, upscaled, coarse_sr, raw)
        features.append(measured[0].flatten(1).T.double().cpu())
        uncertainty.append(raw.flatten().double().cpu())
        errors.append(torch.from_numpy(patch_errors(sr_image, hr_image)).flatten())
    return Patches(torch.cat(features), torch.cat(errors), torch.cat(uncertainty))


def fit(patches: Patches, sha256: str) -> UncertaintyCalibration:
    """Least squares with a little ridge, then one factor that brings the mean prediction to the mean error."""
    centre, spread = patches.features.mean(0), patches.features.std(0).clamp_min(1e-6)
    terms = expand(((patches.features - centre) / spread).clamp(-4, 4))
    target = (patches.errors + ERROR_FLOOR).log()
    gram = terms.T @ terms / len(terms) + RIDGE * torch.eye(terms.shape[1], dtype=torch.float64)
    coefficients = torch.linalg.solve(gram, terms.T @ target / len(terms))
    # the mean of a logarithm is not the logarithm of the mean: without this the errors would be predicted too small
    coefficients[0] += (patches.errors.mean() / (terms @ coefficients).exp().mean()).log()
    return UncertaintyCalibration(
        centre=tuple(centre.tolist()),
        spread=tuple(spread.tolist()),
        coefficients=tuple(coefficients.tolist()),
        sha256=sha256,
        num_patches=len(terms),
    )


def compare(calibration: UncertaintyCalibration, patches: Patches) -> dict[str, dict[str, float]]:
    """Quality of both maps on these patches, by name, and how far the mean prediction is off."""
    errors = patches.errors.numpy()
    predicted = calibration.predict(patches.features.T[None, :, None]).flatten()
    return {
        "uncertainty": rank_quality(predicted.numpy(), errors) | {"bias": float(predicted.mean() / errors.mean() - 1)},
        "uncertainty_raw": rank_quality(patches.uncertainty.numpy(), errors),
    }


def is_better(quality: dict[str, dict[str, float]]) -> bool:
    ours, raw = quality["uncertainty"], quality["uncertainty_raw"]
    return ours["rank_correlation"] > raw["rank_correlation"] and ours["risk_area"] < raw["risk_area"]


def read_pairs(folder: Path, positions: Iterable[int], draw: int) -> Iterator[tuple[FloatImage, FloatImage]]:
    """(LR, HR) in [0, 1] of the photographs at these positions of a folder of `training.pairs`."""
    hr = np.load(folder / "hr.npy", mmap_mode="r")
    lr = np.load(draw_path(folder, draw), mmap_mode="r")
    for i in positions:
        yield lr[i].astype(np.float32) / 255, hr[i].astype(np.float32) / 255


def choose(folder: Path, count: int) -> tuple[list[int], list[int]]:
    """Positions of `count` training photographs, spread evenly, and of all that were held out."""
    index = json.loads((folder / "index.json").read_text())
    held_out = sorted(index["held_out"])
    training = [i for i in range(len(index["names"])) if i not in set(held_out)]
    chosen = np.linspace(0, len(training) - 1, min(count, len(training))).round().astype(int)
    return [training[k] for k in chosen], held_out


def counted(images: Iterable[tuple[FloatImage, FloatImage]], tell: Callable[[str], None]) -> Iterator:
    for number, pair in enumerate(images, start=1):
        yield pair
        if number % 20 == 0:
            tell(f"{number} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="uncertainty.json beside the checkpoint")
    parser.add_argument("--profile", type=Path, help="folder of the checkpoint; absent: the shipped weights")
    parser.add_argument("--images", type=int, default=200, help="training photographs to fit on")
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="write the file even if it is no better")
    args = parser.parse_args()
    upscaler = Upscaler.load("compact", checkpoint=args.profile, with_calibration=False)
    training, held_out = choose(args.pairs, args.images)
    fitted = fit(collect(upscaler, counted(read_pairs(args.pairs, training, args.draw), print)), upscaler.sha256)
    quality = compare(fitted, collect(upscaler, read_pairs(args.pairs, held_out, args.draw)))
    for name, row in quality.items():
        print(f"{name:16s}", "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    if not (is_better(quality) or args.force):
        sys.exit("the calibrated map sorts held-out patches no better than U: nothing written")
    fitted.save(args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
