"""Eq. 13: what the uncertainty map measures."""

import pytest
import torch

from models.routing.uncertainty import estimate_uncertainty


def test_it_is_the_absolute_difference_summed_over_rgb_and_averaged_over_a_patch():
    coarse_sr, upscaled_lr = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
    uncertainty_map = estimate_uncertainty(coarse_sr, upscaled_lr)
    assert uncertainty_map.shape == (2, 1, 2, 3)
    patch = (coarse_sr - upscaled_lr)[1, :, 16:32, 32:48].abs().sum(0).mean()
    assert torch.allclose(uncertainty_map[1, 0, 1, 2], patch)


def test_where_both_agree_there_is_none():
    image = torch.rand(1, 3, 32, 32)
    assert not estimate_uncertainty(image, image).any()


def test_opposite_errors_add_up():
    upscaled_lr = torch.full((1, 3, 16, 16), 0.5)
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    assert torch.allclose(estimate_uncertainty(upscaled_lr + 0.1 * signs, upscaled_lr), torch.tensor(0.3), atol=1e-6)


def test_a_patch_cut_by_the_border_averages_what_it_has():
    uncertainty_map = estimate_uncertainty(torch.ones(1, 3, 17, 33), torch.zeros(1, 3, 17, 33))
    assert uncertainty_map.shape == (1, 1, 2, 3)
    assert torch.allclose(uncertainty_map, torch.tensor(3.0))


def test_two_sizes_are_refused():
    with pytest.raises(ValueError, match="upscaled_lr"):
        estimate_uncertainty(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8))
