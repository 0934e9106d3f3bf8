"""Covariances with bootstrap intervals, rank correlation, and risk-coverage curves."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def patchwise_covariance(weights: Array, gains: Array) -> Array:
    """sum_i Cov(w_i^m, Delta_i^m) per modality, of (N images, M, P): each patch's covariance is over the images."""
    centred = (weights - weights.mean(0)) * (gains - gains.mean(0))
    return np.asarray(centred.sum((0, 2)) / (len(weights) - 1))


def pooled_correlation(weights: Array, gains: Array, *, within_images: bool = False) -> Array:
    """Pearson correlation of w and Delta over all images and patches, per modality; NaN where one is constant.

    within_images: after each image's own means are taken away, so that only the place in the picture counts.
    """
    axis = 2 if within_images else (0, 2)
    w, g = (values - values.mean(axis, keepdims=True) for values in (weights, gains))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((w * g).sum((0, 2)) / np.sqrt((w**2).sum((0, 2)) * (g**2).sum((0, 2))))


def bootstrap(
    statistic: Callable[[NDArray[np.int_]], Array],
    count: int,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Array, Array]:
    """Percentile interval (low, high) of a statistic of images, drawn anew with replacement `rounds` times.

    statistic: of the indices drawn, `count` of them.
    """
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(0, count, count)) for _ in range(rounds)])
    edge = (1 - level) / 2
    return np.quantile(drawn, edge, axis=0), np.quantile(drawn, 1 - edge, axis=0)


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's, ties at their mean rank; NaN where one is constant."""
    from scipy.stats import rankdata

    x, y = (rankdata(values.ravel()) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    length = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / length) if length > 0 else float("nan")


def mean_of_known(values: Iterable[float]) -> float:
    """NaN only where nothing is known: numpy's own nanmean warns of that."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def risk_curve(uncertainty: Array, error: Array, points: int = 20) -> list[float]:
    """Mean error of the share of patches with the lowest uncertainty, at shares 1/points, 2/points ... 1."""
    risks = running_risk(uncertainty, error)
    ends = np.ceil(np.arange(1, points + 1) / points * len(risks)).astype(int) - 1
    return [float(risk) for risk in risks[ends]]


def risk_area(uncertainty: Array, error: Array) -> float:
    """Area under the risk-coverage curve: the mean of its risks over all coverages; lower is better."""
    return float(running_risk(uncertainty, error).mean())


def running_risk(uncertainty: Array, error: Array) -> Array:
    order = np.argsort(uncertainty.ravel(), kind="stable")
    return np.asarray(np.cumsum(error.ravel()[order]) / np.arange(1, error.size + 1))


def rank_quality(uncertainty: Array, error: Array) -> dict[str, float]:
    """How well uncertainty sorts patches by error, both of any one shape.

    excess: 0 is as good as sorting by the error itself (oracle), 1 as bad as no order at all (random).
    """
    area, oracle, random = risk_area(uncertainty, error), risk_area(error, error), float(error.mean())
    return {
        "rank_correlation": rank_correlation(uncertainty, error),
        "risk_area": area,
        "risk_area_oracle": oracle,
        "risk_area_random": random,
        "excess": (area - oracle) / (random - oracle) if random > oracle else float("nan"),
    }
