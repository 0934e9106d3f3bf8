"""`m3esr audit`: is what guided the pictures true?

The theorem's Gamma, router sanity, weights against what the maps are worth, uncertainty against error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.agreement import map_agreement, reference_maps
from evaluation.corruption import BLIND, CorruptionMeter
from evaluation.data import Pair, read_image, to_float
from evaluation.errors import EvaluationError
from evaluation.gains import LOSS, PATCH, GainMeter, PatchGains, Scene, to_rows
from evaluation.report import Table
from evaluation.statistics import (
    bootstrap,
    mean_of_known,
    patchwise_covariance,
    pooled_correlation,
    rank_correlation,
    rank_quality,
    risk_curve,
)
from models.configs import VISUAL_MODALITIES
from models.pipeline import Upscaler
from models.requests import UpscaleOptions

MAX_SIDE = 128  # LR pixels: one region
TOKEN = 4  # LR pixels
NOTE = (
    "Gamma is the first-order gain of routing over constant weights w_bar in the loss; "
    "above 0, its interval too, the router trusts a modality where it helps."
)
FloatImage = NDArray[np.float32]


def audit(
    upscaler: Upscaler,
    pairs: Sequence[Pair],
    options: UpscaleOptions,
    on_step: Callable[[int, int], None] = lambda *_: None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about a folder of pairs as JSON. Raises EvaluationError on fewer than 3 pairs or pairs unfit.

    seed: of the bootstrap and of the damage; that of the pictures is in `options`.
    """
    if len(pairs) < 3:
        raise EvaluationError(f"an audit takes covariances over images and needs 3 pairs or more, not {len(pairs)}")
    meter, side = GainMeter(upscaler, options), common_side(pairs)
    routed = []
    for index, pair in enumerate(pairs):  # twice over the folder: w_bar first, and scenes are too large to keep
        routed.append(meter.route(meter.see(*read_pair(pair, side))))
        on_step(index + 1, 2 * len(pairs))
    mean_weights = {name: float(np.mean([float(w[name].mean()) for w in routed])) for name in VISUAL_MODALITIES}
    damage, measured, agreements, trust = CorruptionMeter(meter, seed), [], [], []
    for index, pair in enumerate(pairs):
        lr, hr = read_pair(pair, side)
        scene = meter.see(lr, hr)
        measured.append(meter.measure(scene, mean_weights))
        damage.add(scene)
        agreements.append(measure_agreement(meter, scene))
        result = upscaler.upscale(lr, options)
        maps = {name: values for name, values in result.maps.items() if name.startswith("uncertainty")}
        trust.append((maps, patch_errors(result.sr_image, hr)))
        on_step(len(pairs) + index + 1, 2 * len(pairs))
    return {
        "images": len(pairs),
        "lr_side": side,
        "patches_per_image": (side // TOKEN) ** 2,
        "num_steps": len(meter.sigmas) - 1,
        "loss": LOSS,
        "mean_weights": mean_weights,
        "gamma": summarise_gains(measured, mean_weights, seed),
        "router_sanity": damage.summary(),
        "agreement": summarise_agreement(measured, agreements),
        "uncertainty": summarise_uncertainty(trust),
    }


def common_side(pairs: Sequence[Pair]) -> int:
    """The side in LR pixels of the central square that every pair has. Raises EvaluationError unless all are x4."""
    sides = [MAX_SIDE]
    for pair in pairs:
        lr, hr = read_image(pair.lr), read_image(pair.hr)
        if (4 * lr.shape[0], 4 * lr.shape[1]) != hr.shape[:2]:
            raise EvaluationError(f"{pair.stem}: HR must be 4 times LR, not {hr.shape[:2]} to {lr.shape[:2]}")
        sides.append(min(lr.shape[:2]) // TOKEN * TOKEN)
    if min(sides) < 32:
        raise EvaluationError(f"the smallest LR image has {min(sides)} usable pixels a side; an audit needs 32")
    return min(sides)


def read_pair(pair: Pair, side: int) -> tuple[FloatImage, FloatImage]:
    lr, hr = read_image(pair.lr), read_image(pair.hr)
    top, left = (lr.shape[0] - side) // 2, (lr.shape[1] - side) // 2
    lr = lr[top : top + side, left : left + side]
    hr = hr[4 * top : 4 * (top + side), 4 * left : 4 * (left + side)]
    return to_float(lr), to_float(hr)


def patch_errors(sr_image: FloatImage, hr_image: FloatImage) -> NDArray[np.float64]:
    """Mean |SR - HR| over the RGB pixels of each patch, (rows, columns); sides are multiples of a patch."""
    error = np.abs(sr_image.astype(np.float64) - hr_image).mean(2)
    rows, columns = error.shape[0] // PATCH, error.shape[1] // PATCH
    return np.asarray(error.reshape(rows, PATCH, columns, PATCH).mean((1, 3)))


def summarise_gains(measured: Sequence[PatchGains], mean_weights: dict[str, float], seed: int) -> dict[str, Any]:
    """Gamma in all and per modality with 95 % intervals; the loss that routing changed, beside what it predicts."""
    weights, gains = (np.stack([getattr(one, name) for one in measured]) for name in ("weights", "gains"))

    def gamma(drawn: NDArray[np.int_]) -> NDArray[np.float64]:
        each = patchwise_covariance(weights[drawn], gains[drawn])
        return np.append(each, each.sum())

    found = gamma(np.arange(len(measured)))
    low, high = bootstrap(gamma, len(measured), seed=seed)
    correlation = pooled_correlation(weights, gains)
    within = pooled_correlation(weights, gains, within_images=True)
    offset = weights - np.array([mean_weights[name] for name in VISUAL_MODALITIES])[None, :, None]
    static, dynamic = (float(np.mean([getattr(one, f"{n}_loss") for one in measured])) for n in ("static", "dynamic"))
    return {
        "total": {"gamma": found[-1], "low": low[-1], "high": high[-1]},
        "modalities": {
            name: {
                "gamma": found[m],
                "low": low[m],
                "high": high[m],
                "correlation": float(correlation[m]),
                "correlation_within_images": float(within[m]),
                "mean_gain": float(gains[:, m].sum(1).mean()),
                "weight_deviation": float(weights[:, m].std()),
            }
            for m, name in enumerate(VISUAL_MODALITIES)
        },
        "static_loss": static,
        "dynamic_loss": dynamic,
        "measured_gain": static - dynamic,
        "first_order_gain": float((offset * gains).sum((1, 2)).mean()),
    }


def measure_agreement(meter: GainMeter, scene: Scene) -> NDArray[np.float64]:
    """(M, P): how well each map agrees with that of the HR image, in the order of VISUAL_MODALITIES."""
    reference = reference_maps(meter.network, scene.hr_image, VISUAL_MODALITIES)
    return to_rows([map_agreement(name, scene.modalities[name], reference[name]) for name in VISUAL_MODALITIES])


def summarise_agreement(measured: Sequence[PatchGains], agreements: Sequence[Any]) -> dict[str, Any]:
    """Per modality: does the weight rank patches as their maps agree with those of the HR image?"""
    weights, agreement = np.stack([one.weights for one in measured]), np.stack(agreements)
    summary = {}
    for m, name in enumerate(VISUAL_MODALITIES):
        within = [rank_correlation(w[m], a[m]) for w, a in zip(weights, agreement, strict=True)]
        summary[name] = {
            "mean_agreement": float(agreement[:, m].mean()),
            "mean_weight": float(weights[:, m].mean()),
            "weight_deviation": float(weights[:, m].std()),
            "rank_correlation": rank_correlation(weights[:, m], agreement[:, m]),
            "rank_correlation_within_images": mean_of_known(within),
        }
    return summary


def summarise_uncertainty(trust: Sequence[tuple[dict[str, Any], NDArray[np.float64]]]) -> dict[str, Any]:
    """Per uncertainty map: how well it sorts all patches by error, and on average those of one image."""
    error = np.stack([values for _, values in trust])
    summary: dict[str, Any] = {"mean_error": float(error.mean())}
    for name in trust[0][0]:
        values = np.stack([maps[name] for maps, _ in trust]).astype(np.float64)
        within = [rank_quality(v, e)["rank_correlation"] for v, e in zip(values, error, strict=True)]
        summary[name] = rank_quality(values, error) | {
            "rank_correlation_within_images": mean_of_known(within),
            "mean": float(values.mean()),
            "risk_curve": risk_curve(values, error),
        }
    return summary


def audit_tables(found: dict[str, Any], data: str) -> tuple[Table, ...]:
    gamma, sanity, uncertainty = found["gamma"], found["router_sanity"], found["uncertainty"]
    rows = []
    for name, row in (*gamma["modalities"].items(), ("all", gamma["total"])):
        interval = (f"{row[key]:.2e}" for key in ("gamma", "low", "high"))
        rows.append((name, *interval, *(f"{row[key]:.3f}" if key in row else "" for key in CORRELATIONS)))
    notes = (
        NOTE,
        f"Loss: {found['loss']}. Constant weights {gamma['static_loss']:.6f}, routed {gamma['dynamic_loss']:.6f}: "
        f"gain {gamma['measured_gain']:.2e} measured, {gamma['first_order_gain']:.2e} to first order.",
    )
    header = ("modality", "Gamma", "95 % from", "to", "correlation", "within images", "weight deviation")
    first = Table(f"Gamma = sum_i Cov(w_i, Delta_i), {found['images']} images of {data}", header, tuple(rows), notes)
    damaged = tuple(
        (
            row["modality"],
            row["corruption"],
            f"{row['mean_weight']:.4f}",
            f"{row['mean_weight_corrupted']:.4f}",
            f"{row['loss_change']:+.2e}",
        )
        for row in sanity["rows"]
    )
    header = ("modality", "its map", "mean weight", "when damaged", "loss change")
    second = Table("Router sanity", header, damaged, (BLIND,) if sanity["is_blind"] else ())
    names = [name for name in uncertainty if name != "mean_error"]
    ranked = tuple((name, *(f"{uncertainty[name][key]:.4f}" for key in RANKS)) for name in names)
    header = ("map", "rank correlation", "within images", "risk area", "oracle", "random", "excess")
    third = Table("Uncertainty against |SR - HR| per patch", header, ranked, ("excess: 0 oracle, 1 no order at all.",))
    header = ("modality", "agreement", "mean weight", "deviation", "rank correlation", "within images")
    fourth = Table(
        "Weights against the agreement of the maps", header, agreement_rows(found["agreement"]), (AGREEMENT,)
    )
    return first, second, fourth, third


def agreement_rows(agreement: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple((name, *(f"{value:.4f}" for value in row.values())) for name, row in agreement.items())


AGREEMENT = (
    "Agreement: of a patch's map with what the same extractor sees in the HR image shrunk to LR size; minus the mean "
    "difference of the rendered maps, the share of edge pixels found within 2 px, the cosine of DINO features. The "
    "extractors' own errors on clean images are not in it."
)
CORRELATIONS = ("correlation", "correlation_within_images", "weight_deviation")
RANKS = (
    "rank_correlation",
    "rank_correlation_within_images",
    "risk_area",
    "risk_area_oracle",
    "risk_area_random",
    "excess",
)
