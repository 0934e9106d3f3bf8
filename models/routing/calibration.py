"""Calibrated uncertainty: from U (Eq. 13) and what the images look like around it to the expected absolute error.

Not in the paper, which only routes by U. A monotone map of U alone would rank patches as U does; so the local gradient
of coarse image and interpolation, the noise of the LR image and the brightness join it. The map is a log-linear
regression with squares and products, fitted by `training.calibrate`: a small JSON file beside the weights.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.routing.uncertainty import PATCH_SIZE

FILE = "uncertainty.json"
FEATURES = ("uncertainty", "coarse_gradient", "lr_gradient", "lr_noise", "surroundings", "brightness")
LUMA = (0.299, 0.587, 0.114)
FLOOR = 1e-3  # added before each logarithm: a quarter of an 8-bit step
MIN_ERROR, MAX_ERROR = 1e-4, 1.0


@dataclass(frozen=True, kw_only=True)
class UncertaintyCalibration:
    """A fitted map. centre, spread: of each feature; coefficients: of `expand`'s terms; sha256: of the weights."""

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    coefficients: tuple[float, ...]
    sha256: str
    num_patches: int = 0  # fitted on
    features: tuple[str, ...] = FEATURES

    def predict(self, features: Tensor) -> Tensor:
        """Features (B, F, rows, columns) of `measure` -> expected |SR - HR| (B, 1, rows, columns).

        Mean over the RGB pixels of a patch, images in [0, 1].
        """
        shape = (1, -1, 1, 1)
        standard = (features - features.new_tensor(self.centre).view(shape)) / features.new_tensor(self.spread).view(
            shape
        )
        # beyond what the fit has seen, a quadratic would run away
        terms = expand(standard.clamp(-4, 4))
        logarithm = (terms * features.new_tensor(self.coefficients).view(shape)).sum(1, keepdim=True)
        return logarithm.exp().clamp(MIN_ERROR, MAX_ERROR)

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)


def load_calibration(folder: Path, sha256: str) -> UncertaintyCalibration | None:
    """The calibration beside a checkpoint, or None where there is none.

    Raises ValueError when it is broken, or was fitted to other weights than those of `sha256`, whose errors it
    cannot know.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        read = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(path.read_text()).items()}
        found = UncertaintyCalibration(**read)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no calibration ({error}); fit it again or remove it") from error
    num_terms = expand(torch.zeros(1, len(FEATURES), 1, 1)).shape[1]
    if found.features != FEATURES or len(found.coefficients) != num_terms:
        raise ValueError(f"{path} is of another version; fit it again or remove it")
    if found.sha256 != sha256:
        raise ValueError(f"{path} was fitted to other weights; fit it again (training.calibrate) or remove it")
    return found


def measure(lr_image: Tensor, upscaled: Tensor, coarse_sr: Tensor, uncertainty_map: Tensor) -> Tensor:
    """FEATURES per patch, (B, F, rows, columns); all but the brightness are logarithms.

    lr_image (B, 3, H, W), upscaled and coarse_sr (B, 3, 4H, 4W) in [0, 1], uncertainty_map (B, 1, H/4, W/4).
    """
    scale = coarse_sr.shape[-1] // lr_image.shape[-1]
    coarse_gradient = gradient_energy(coarse_sr, PATCH_SIZE)
    reach = F.pad(coarse_gradient, (2, 2, 2, 2), mode="replicate")
    measured = [
        uncertainty_map,
        coarse_gradient,
        gradient_energy(upscaled, PATCH_SIZE),
        noise_energy(lr_image, PATCH_SIZE // scale),
        F.avg_pool2d(reach, 5, stride=1),
    ]
    brightness = F.avg_pool2d(luma(upscaled), PATCH_SIZE)
    return torch.cat([(torch.cat(measured, 1) + FLOOR).log(), brightness], 1)


def gradient_energy(image: Tensor, patch: int) -> Tensor:
    """Mean absolute step between neighbours of luma, both axes, per patch: (B, 3, H, W) -> (B, 1, H/patch, W/patch)."""
    y = F.pad(luma(image), (0, 1, 0, 1), mode="replicate")
    steps = (y[..., :-1, 1:] - y[..., :-1, :-1]).abs() + (y[..., 1:, :-1] - y[..., :-1, :-1]).abs()
    return F.avg_pool2d(steps, patch)


def noise_energy(image: Tensor, patch: int) -> Tensor:
    """Noise per patch after Immerkaer (1996): the mean absolute answer of a mask that is blind to edges and slopes."""
    row = image.new_tensor([1.0, -2.0, 1.0])
    mask = (row[:, None] * row[None, :]).view(1, 1, 3, 3) / 6
    answer = F.conv2d(F.pad(luma(image), (1, 1, 1, 1), mode="replicate"), mask).abs()
    return F.avg_pool2d(answer, patch)


def luma(image: Tensor) -> Tensor:
    return (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def expand(features: Tensor) -> Tensor:
    """(B, F, ...) -> (B, 1 + F + F(F+1)/2, ...): a constant, the features, their squares and products."""
    count = features.shape[1]
    products = [features[:, i] * features[:, j] for i in range(count) for j in range(i, count)]
    return torch.cat([torch.ones_like(features[:, :1]), features, torch.stack(products, 1)], 1)
