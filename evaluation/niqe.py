"""NIQE (Mittal, Soundararajan, Bovik 2013): how far an image's local statistics are from those of pristine photographs.

Written from the paper. The pristine model (mean and covariance of 36 features) comes as an `.npz` with `mu_pris_param`
and `cov_pris_param`, as BasicSR distributes it. As there, all patches count (the paper selects sharp ones only for the
pristine model), on BT.601 luma. Lower is better.
"""

from math import gamma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.metrics import Image, luma

Plane = NDArray[np.float64]
PATCH = 96  # px at full size
SHAPES = np.arange(0.2, 10.001, 0.001)  # of the generalised Gaussians that are tried
# Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)): what the moments of a generalised Gaussian of shape a say
RATIOS = np.array([gamma(2 / a) ** 2 / (gamma(1 / a) * gamma(3 / a)) for a in SHAPES])
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Niqe:
    """Callable on (H, W, 3) uint8 images of at least 192 px a side."""

    def __init__(self, parameters: Path):
        try:
            arrays = np.load(parameters)
            self.mean = np.ravel(arrays["mu_pris_param"]).astype(np.float64)
            self.covariance = np.asarray(arrays["cov_pris_param"], dtype=np.float64)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise EvaluationError(
                f"{parameters} holds no NIQE parameters (an .npz with mu_pris_param, cov_pris_param): {error}"
            ) from error

    def __call__(self, image: Image) -> float:
        """The distance; raises EvaluationError on an image smaller than 2 x 2 patches."""
        rows = features(luma(image).round())
        rows = rows[~np.isnan(rows).any(1)]
        if len(rows) < 2:
            return float("nan")  # flat all over: there are no statistics
        difference = rows.mean(0) - self.mean
        pooled = (np.cov(rows, rowvar=False) + self.covariance) / 2
        return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


def features(y: Plane) -> NDArray[np.float64]:
    """Luma (H, W) in 0..255 -> 36 features per patch: 18 at full and 18 at half size. NaN in flat patches."""
    rows, columns = y.shape[0] // PATCH, y.shape[1] // PATCH
    if min(rows, columns) < 2:
        raise EvaluationError(f"NIQE needs images of {2 * PATCH} px a side or more, not {y.shape[1]} x {y.shape[0]}")
    y = y[: rows * PATCH, : columns * PATCH]
    found = []
    for side in (PATCH, PATCH // 2):
        normalised = contrast_normalise(y)
        found.append(
            [
                patch_features(normalised[i * side : (i + 1) * side, j * side : (j + 1) * side])
                for j in range(columns)
                for i in range(rows)
            ]
        )
        y = halve(y)
    return np.concatenate([np.array(part) for part in found], axis=1)


def contrast_normalise(y: Plane) -> Plane:
    """MSCN coefficients: (y - mean) / (deviation + 1), in a Gaussian window of 7 x 7, sigma 7/6."""
    from scipy.ndimage import correlate1d

    taps = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    taps /= taps.sum()

    def blur(plane: Plane) -> Plane:
        across = correlate1d(plane, taps, axis=0, mode="nearest")
        return np.asarray(correlate1d(across, taps, axis=1, mode="nearest"))

    mean = blur(y)
    return (y - mean) / (np.sqrt(np.abs(blur(y * y) - mean * mean)) + 1)


def patch_features(patch: Plane) -> list[float]:
    """Shape and spread of the coefficients, then shape, mean and both spreads of their products with neighbours."""
    shape, left, right = fit_asymmetric(patch)
    found = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = fit_asymmetric(patch * np.roll(patch, shift, (0, 1)))
        found += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return found


def fit_asymmetric(values: Plane) -> tuple[float, float, float]:
    """Asymmetric generalised Gaussian by moments: (shape, left scale, right scale); NaN where a side is empty."""
    values = values.ravel()
    left_side, right_side = values[values < 0], values[values > 0]
    if not len(left_side) or not len(right_side):
        return 1.0, float("nan"), float("nan")
    left, right = np.sqrt((left_side**2).mean()), np.sqrt((right_side**2).mean())
    skew = left / right
    ratio = np.abs(values).mean() ** 2 / (values**2).mean()
    target = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(SHAPES[np.argmin((RATIOS - target) ** 2)])
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(left * scale), float(right * scale)


def halve(y: Plane) -> Plane:
    """Half size by an antialiased bicubic filter (a = -0.5), the border mirrored, as MATLAB's imresize does it."""
    distance = np.abs(np.arange(-3.5, 4)) / 2  # of the 8 samples around each new one, in new pixels
    taps = np.where(
        distance <= 1,
        1.5 * distance**3 - 2.5 * distance**2 + 1,
        -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2,
    )
    taps /= taps.sum()
    for axis in (0, 1):
        moved = np.moveaxis(y, axis, 0)
        padded = np.pad(moved, ((3, 3), (0, 0)), mode="symmetric")
        count = moved.shape[0] // 2
        y = np.moveaxis(sum(taps[k] * padded[k : k + 2 * count : 2] for k in range(8)), 0, axis)
    return y
