"""The image losses: what each of them asks for, and what it does not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.metrics import gmsd, ssim_y
from models.resize import resize
from models.routing.coarse import upscale
from training.image_losses import ImageLosses, ImageLossWeights
from training.losses import (
    cleanness,
    consistency_loss,
    edge_loss,
    gradient_magnitude,
    grid_loss,
    pattern_loss,
    repetition,
    robust_perceptual,
    structure_loss,
)


def blur(image: torch.Tensor) -> torch.Tensor:
    """[1 1 1] / 3 along both axes, border cut."""
    return F.avg_pool2d(image, 3, stride=1)


class Difference(torch.nn.Module):
    """Stands in for LPIPS: the mean difference of two images."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def test_the_perceptual_loss_looks_at_the_same_place_of_both():
    generator = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(2, 3, 20, 20, generator=generator), scale_factor=8)
    for _ in range(4):
        assert float(robust_perceptual(Difference(), image, image, generator).max()) == 0.0
    assert float(robust_perceptual(Difference(), image, image.flip(-1), generator).min()) > 0.1


def test_the_perceptual_loss_is_blind_to_the_finest_octave():
    hr_image = torch.full((1, 3, 192, 192), 0.5)
    comb = hr_image.clone()
    comb[..., ::2], comb[..., 1::2] = 0.7, 0.3
    generator = torch.Generator().manual_seed(0)
    assert float(Difference()(comb, hr_image)) == pytest.approx(0.2)
    for _ in range(10):
        assert float(robust_perceptual(Difference(), comb, hr_image, generator)) < 0.1


def test_a_grid_costs_and_plain_detail_does_not():
    hr_image, other = (blur(torch.rand(1, 3, 66, 66, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    for period in (2, 4, 8):
        comb = hr_image.clone()
        comb[..., ::period] += 0.2
        assert float(grid_loss(comb, hr_image)) > 5 * float(grid_loss(other, hr_image)), period


def test_the_edge_loss_asks_for_the_edges_of_the_hr_image_and_for_no_others():
    generator = torch.Generator().manual_seed(0)
    hr_image = torch.rand(1, 3, 64, 64, generator=generator)
    blurred = blur(blur(hr_image))
    noisy = (hr_image[..., 2:-2, 2:-2] + 0.5 * torch.randn(1, 3, 60, 60, generator=generator)).clamp(0, 1)
    assert float(edge_loss(hr_image, hr_image)) < 1e-3
    assert float(edge_loss(blurred, hr_image[..., 2:-2, 2:-2])) > 0.2
    assert float(edge_loss(noisy, hr_image[..., 2:-2, 2:-2])) > 0.2


def test_the_edge_loss_is_the_deviation_that_gmsd_measures():
    generator = torch.Generator().manual_seed(0)
    hr_image = F.interpolate(torch.rand(1, 3, 48, 48, generator=generator), scale_factor=4, mode="bicubic").clamp(0, 1)
    sr_image = blur(F.pad(hr_image, (1, 1, 1, 1), mode="replicate"))
    a, b = gradient_magnitude(sr_image), gradient_magnitude(hr_image)
    deviation = ((2 * a * b + 170) / (a.square() + b.square() + 170)).std()
    arrays = [(255 * x[0].permute(1, 2, 0)).numpy() for x in (sr_image, hr_image)]
    assert float(deviation) == pytest.approx(gmsd(*arrays), rel=0.1)


def smooth_noise(seed: int, side: int = 128) -> torch.Tensor:
    """Detail without any period."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(
        torch.rand(1, 3, side // 2, side // 2, generator=generator), size=(side, side), mode="bilinear"
    )


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_pattern_locked_to_the_cells_costs_wherever_it_is_drawn_and_detail_does_not(period):
    hr_image, other = 0.5 + 0.1 * smooth_noise(0), 0.5 + 0.1 * smooth_noise(1)
    place = torch.arange(128)
    checks = torch.sin(2 * torch.pi * (place[:, None] + place[None, :] + 0.5) / period)  # diagonal: rows average it out
    local = hr_image.clone()
    local[..., :64, :64] += 0.1 * checks[:64, :64]
    assert float(pattern_loss(other, hr_image)) < 0.02
    assert float(pattern_loss(local, hr_image)) > 0.1
    assert float(pattern_loss(hr_image, local)) == 0.0  # a pattern of the photograph's own is no fault


def test_repetition_is_one_for_a_pattern_and_nothing_for_a_flat_image():
    pattern = torch.rand(1, 3, 8, 8).tile(1, 1, 8, 8)
    assert repetition(pattern).min() > 0.99
    assert repetition(torch.full((1, 3, 64, 64), 0.3)).max() < 1e-6


def test_the_structure_loss_orders_images_as_ssim_does():
    hr_image = smooth_noise(0)
    noise = torch.randn(hr_image.shape, generator=torch.Generator().manual_seed(1))
    images = [(hr_image + strength * noise).clamp(0, 1) for strength in (0.0, 0.02, 0.1, 0.3)]
    losses = [float(structure_loss(image, hr_image)) for image in images]
    arrays = [(255 * image[0].permute(1, 2, 0)).round().byte().numpy() for image in images]
    scores = [ssim_y(array, arrays[0]) for array in arrays]
    assert losses[0] == pytest.approx(0.0, abs=1e-5) and losses == sorted(losses)
    assert scores == sorted(scores, reverse=True)
    assert np.allclose(losses, 1 - np.array(scores), atol=0.15)


def test_the_consistency_loss_is_minus_the_psnr_of_the_reduced_image_in_bels():
    sr_image = smooth_noise(0, 64)
    lr_image = resize(sr_image, (16, 16))
    for decibel in (10, 30):
        offset = 10 ** (-decibel / 20)
        assert float(consistency_loss(sr_image, lr_image + offset)) == pytest.approx(-decibel / 10, abs=0.01)
    assert float(consistency_loss(sr_image, lr_image)) == pytest.approx(-5, abs=0.01)  # met: nothing more to ask


def test_the_consistency_loss_asks_more_of_a_clean_crop_than_of_a_noisy_one():
    sr_image = smooth_noise(0, 64)[:1].repeat(2, 1, 1, 1)
    lr_image = resize(sr_image, (16, 16))
    lr_image[1] += 0.1 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    sr_image = (sr_image + 0.01).requires_grad_()
    consistency_loss(sr_image, lr_image).backward()
    assert sr_image.grad is not None
    clean, noisy = sr_image.grad.square().mean((1, 2, 3)).sqrt().tolist()
    assert clean > 4 * noisy


def test_the_sum_is_the_weighted_terms_and_terms_without_weight_are_not_computed():
    sr_image, hr_image = smooth_noise(0, 64), smooth_noise(1, 64)
    lr_image = F.avg_pool2d(hr_image, 4)
    losses = ImageLosses(ImageLossWeights(structure=0.5, pattern=2.0), None, seed=0)(sr_image, hr_image, lr_image)
    assert set(losses) == {"loss", "pixel", "structure", "pattern"}
    expected = losses["pixel"] + 0.5 * losses["structure"] + 2.0 * losses["pattern"]
    assert float(losses["loss"]) == pytest.approx(float(expected))


def test_a_weight_for_lpips_without_its_file_is_refused():
    with pytest.raises(ValueError, match="--lpips"):
        ImageLosses(ImageLossWeights(lpips=0.1), None, seed=0)


def test_an_image_that_was_only_scaled_down_is_clean_and_one_with_noise_is_not():
    hr_image = smooth_noise(0, 64)[:1].repeat(2, 1, 1, 1)
    lr_image = F.avg_pool2d(hr_image, 4)
    lr_image[1] += 0.1 * torch.randn(lr_image[1].shape, generator=torch.Generator().manual_seed(0))
    clean, noisy = cleanness(F.interpolate(lr_image, scale_factor=4), hr_image).tolist()
    assert clean > 0.99 and noisy < 0.05


def test_with_a_clean_focus_the_adversary_pulls_clean_crops_more_and_noisy_ones_less():
    hr_image = upscale(0.5 + 0.2 * smooth_noise(0, 16)[:1], 4).repeat(2, 1, 1, 1)
    lr_image = F.avg_pool2d(hr_image, 4)
    lr_image[1] += 0.2 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))

    def pull(focus: float) -> torch.Tensor:
        """Mean gradient of each crop."""
        torch.manual_seed(0)
        sr_image = hr_image.clone().requires_grad_()  # nothing else pulls at a perfect result
        ImageLosses(ImageLossWeights(adversarial=1.0, clean_focus=focus), None, seed=0)(sr_image, hr_image, lr_image)[
            "loss"
        ].backward()
        assert sr_image.grad is not None
        return sr_image.grad.abs().mean((1, 2, 3))

    ratio = pull(0.5) / pull(0.0)
    assert ratio.tolist() == pytest.approx([1.5, 0.5], rel=0.05)
