"""Covariances, intervals, ranks and risk curves against values known beforehand."""

import numpy as np
import pytest

from evaluation.statistics import (
    bootstrap,
    patchwise_covariance,
    pooled_correlation,
    rank_correlation,
    rank_quality,
    risk_area,
    risk_curve,
)


def test_gamma_is_the_sum_of_the_covariances_of_every_patch():
    rng = np.random.default_rng(0)
    weights, gains = rng.random((6, 2, 5)), rng.random((6, 2, 5))
    expected = [sum(np.cov(weights[:, m, i], gains[:, m, i])[0, 1] for i in range(5)) for m in range(2)]
    assert patchwise_covariance(weights, gains) == pytest.approx(expected)


def test_correlation_within_images_ignores_what_differs_between_them():
    rng = np.random.default_rng(1)
    level = np.array([0.0, 10.0])[:, None, None]
    inside = rng.standard_normal((2, 1, 50))
    assert pooled_correlation(level + inside, level - inside)[0] > 0.9
    assert pooled_correlation(level + inside, level - inside, within_images=True)[0] == pytest.approx(-1)
    assert np.isnan(pooled_correlation(np.ones((2, 1, 5)), inside[..., :5])[0])


def test_the_bootstrap_interval_holds_the_mean_of_a_sample_at_its_known_width():
    sample = np.random.default_rng(2).normal(5, 2, 400)
    low, high = bootstrap(lambda drawn: sample[drawn].mean(keepdims=True), len(sample))
    assert low[0] < sample.mean() < high[0]
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert bootstrap(lambda drawn: sample[drawn].mean(keepdims=True), len(sample))[0] == low  # the same every time


def test_ranks_see_order_only_and_share_ties():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 1, 2, 2.0]), np.array([1, 2, 3, 4.0])) == pytest.approx(2 / 5**0.5)
    assert np.isnan(rank_correlation(np.ones(4), a))


def test_the_risk_curve_keeps_the_surest_patches_first():
    uncertainty, error = np.array([3.0, 1.0, 2.0, 4.0]), np.array([30.0, 10.0, 20.0, 40.0])
    assert risk_curve(uncertainty, error, points=4) == [10, 15, 20, 25]
    assert risk_area(uncertainty, error) == 17.5
    assert risk_area(-uncertainty, error) == pytest.approx((40 + 35 + 30 + 25) / 4)


def test_excess_is_zero_for_the_oracle_and_one_for_no_order():
    error = np.random.default_rng(3).random((50, 50))
    assert rank_quality(error * 2 + 1, error)["excess"] == pytest.approx(0)
    assert rank_quality(np.random.default_rng(4).random((50, 50)), error)["excess"] == pytest.approx(1, abs=0.1)
    assert np.isnan(rank_quality(error, np.ones((50, 50)))["excess"])
