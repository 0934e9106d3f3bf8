"""Metrics against values known in closed form."""

import numpy as np
import pytest

from evaluation import metrics


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def test_equal_images_are_perfect():
    a = picture()
    assert metrics.psnr_y(a, a) == float("inf")
    assert metrics.ssim_y(a, a) == pytest.approx(1.0)
    assert metrics.gmsd(a, a) == pytest.approx(0.0, abs=1e-9)
    assert metrics.grid_excess(a, a) == 0.0


def test_psnr_of_a_constant_error_is_known():
    a = np.full((32, 32, 3), 100, np.uint8)
    # one grey level is 219 / 255 of luma
    assert metrics.psnr_y(a, a + 10) == pytest.approx(20 * np.log10(255 / (10 * 219 / 255)), abs=1e-3)


def test_the_border_does_not_count():
    a = picture()
    b = a.copy()
    b[:4] = 0
    b[:, -4:] = 0
    assert metrics.psnr_y(a, b) == float("inf")


def test_luma_follows_bt_601():
    assert metrics.luma(np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)) == pytest.approx(
        np.array([[235, 16]]), abs=0.01
    )


@pytest.mark.parametrize("period", [4, 8])
def test_a_grid_is_seen(period):
    a = np.full((64, 64, 3), 120, np.uint8) + np.random.default_rng(0).integers(0, 8, (64, 64, 1), dtype=np.uint8)
    b = a.copy()
    b[:, ::period] += 20
    assert metrics.grid_excess(b, a) > 0.3
    assert metrics.grid_excess(a, a) == 0.0


def test_noise_lowers_ssim_more_than_a_shift_of_brightness():
    a = picture() // 2 + 40
    noisy = np.clip(a + np.random.default_rng(1).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    assert metrics.ssim_y(noisy, a) < metrics.ssim_y(a + 10, a)
