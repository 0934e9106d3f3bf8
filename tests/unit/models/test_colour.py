"""Colour correction: parity with DiT4SR's functions, and what must not change."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.colour import adain, correct_colour, low_frequencies, wavelet

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "colorfix"


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "tensors.safetensors")


def test_adain_equals_the_official_function(official):
    assert (adain(official["target"], official["source"]) - official["adain"]).abs().max() < 1e-5


def test_wavelet_equals_the_official_function(official):
    assert (wavelet(official["target"], official["source"]) - official["wavelet"]).abs().max() < 1e-5


def test_the_low_frequencies_equal_the_official_decomposition(official):
    for plane, expected in zip(official["target"][0].clone(), official["wavelet_low"][0], strict=True):
        assert (low_frequencies(plane) - expected).abs().max() < 1e-5


def test_the_8_bit_entry_point_differs_only_by_its_truncation(official):
    sr_image, reference = (official[name].permute(2, 0, 1)[None].float() / 255 for name in ("target_u8", "source_u8"))
    corrected = correct_colour(sr_image, reference, "wavelet")[0].permute(1, 2, 0) * 255
    assert (corrected - official["wavelet_u8"]).min() > -1e-3
    assert (corrected - official["wavelet_u8"]).max() < 1 + 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 33)])
@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_a_constant_image_takes_the_constant_of_the_reference(method, size):
    corrected = correct_colour(torch.full((1, 3, *size), 0.2), torch.full((1, 3, *size), 0.6), method)
    assert (corrected - 0.6).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["wavelet", "adain", "none"])
def test_an_image_with_the_right_colours_is_left_alone(method):
    image = torch.rand(2, 3, 40, 33)
    assert torch.allclose(correct_colour(image, image, method), image, atol=1e-6)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_grey_stays_grey(method):
    sr_image, reference = (torch.rand(1, 1, 20, 30).expand(1, 3, 20, 30) for _ in range(2))
    corrected = correct_colour(sr_image, reference, method)
    assert torch.equal(corrected[:, 0], corrected[:, 1])
    assert torch.equal(corrected[:, 0], corrected[:, 2])


def test_wavelet_keeps_the_detail_and_moves_the_mean():
    detail = torch.rand(1, 3, 64, 64) * 0.1
    corrected = wavelet(detail + 0.6, detail + 0.3)
    assert torch.allclose(corrected, detail + 0.3, atol=1e-5)


@pytest.mark.parametrize("method", ["wavelet", "adain", "none"])
def test_the_result_is_new_and_inside_the_range(method):
    sr_image = torch.rand(1, 3, 16, 16) * 3 - 1
    before = sr_image.clone()
    corrected = correct_colour(sr_image, torch.rand(1, 3, 16, 16), method)
    assert torch.equal(sr_image, before)
    assert corrected.min() >= 0 and corrected.max() <= 1


def test_shapes_and_methods_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        correct_colour(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4), "wavelet")
    with pytest.raises(ValueError, match="sepia"):
        correct_colour(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), "sepia")
