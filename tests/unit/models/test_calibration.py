"""Calibrated uncertainty: what it measures, that it belongs to its weights, and how the pipeline shows it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.requests import UpscaleOptions
from models.routing.calibration import FEATURES, FILE, UncertaintyCalibration, expand, load_calibration, measure
from tests.unit.models.test_pipeline import picture
from tests.unit.models.tiny import tiny_upscaler

NUM_TERMS = 1 + 6 + 21


def calibration(**coefficients: float) -> UncertaintyCalibration:
    """exp of a constant and of single features, by name."""
    terms = [0.0] * NUM_TERMS
    for name, value in coefficients.items():
        terms[0 if name == "constant" else 1 + FEATURES.index(name)] = value
    return UncertaintyCalibration(
        centre=(0.0,) * 6, spread=(1.0,) * 6, coefficients=tuple(terms), sha256="abc", num_patches=9
    )


def test_the_terms_are_a_constant_the_features_and_their_products():
    features = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    assert expand(features).flatten().tolist() == [1, 2, 3, 4, 6, 9]
    assert expand(torch.zeros(1, 6, 1, 1)).shape[1] == NUM_TERMS


def test_the_prediction_is_log_linear_and_held_to_a_range():
    features = torch.zeros(1, 6, 2, 2)
    features[0, 1] = 2.0
    predicted = calibration(constant=-3.0, coarse_gradient=0.5).predict(features)
    assert predicted.shape == (1, 1, 2, 2) and torch.allclose(predicted, torch.tensor(-2.0).exp())
    assert calibration(constant=9.0).predict(features).max() == 1.0
    assert calibration(constant=-99.0).predict(features).min() == pytest.approx(1e-4)
    features[0, 1] = 100.0  # far beyond what a fit has seen
    assert torch.allclose(calibration(constant=-3.0, coarse_gradient=0.5).predict(features), torch.tensor(-1.0).exp())


def test_features_see_texture_noise_and_brightness_where_they_are():
    lr = torch.full((1, 3, 16, 16), 0.25)
    upscaled = torch.full((1, 3, 64, 64), 0.25)
    coarse_sr = upscaled.clone()
    coarse_sr[..., :16, ::2] += 0.1  # stripes in the first row of patches
    lr[..., 8:, 8:] += 0.1 * torch.tensor([[1.0, -1], [-1, 1]]).repeat(4, 4)  # a checkerboard is all noise
    found = dict(zip(FEATURES, measure(lr, upscaled, coarse_sr, torch.zeros(1, 1, 4, 4))[0], strict=True))
    flat = float(np.log(1e-3))
    assert (found["coarse_gradient"][0] > -3).all() and torch.allclose(found["coarse_gradient"][1:], torch.tensor(flat))
    assert (found["lr_noise"][2:, 2:] > -3).all() and torch.allclose(found["lr_noise"][0], torch.tensor(flat))
    assert found["surroundings"][0, 0] > found["surroundings"][3, 0] > flat - 1e-5
    assert torch.allclose(found["brightness"], torch.tensor(0.25))


def test_it_is_read_back_as_it_was_written(tmp_path):
    written = calibration(constant=-3.0)
    written.save(tmp_path / FILE)
    assert load_calibration(tmp_path, "abc") == written
    assert load_calibration(tmp_path / "nowhere", "abc") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text("{"), "is no calibration"),
        (lambda path: path.write_text("[1]"), "is no calibration"),
        (lambda path: path.write_text('{"a": 1}'), "is no calibration"),
        (lambda path: replace(calibration(), sha256="other").save(path), "fitted to other weights"),
        (lambda path: replace(calibration(), coefficients=(1.0,)).save(path), "of another version"),
    ],
)
def test_one_that_does_not_belong_is_refused(tmp_path, change, words):
    change(tmp_path / FILE)
    with pytest.raises(ValueError, match=words):
        load_calibration(tmp_path, "abc")


@pytest.mark.parametrize("preset", ["balanced", "fast"])
def test_the_pipeline_shows_both_maps_and_routes_by_the_raw_one(preset):
    lr_image, options = picture(20, 17), UpscaleOptions(preset=preset)
    upscaler = tiny_upscaler()
    raw = upscaler.upscale(lr_image, options)
    upscaler.calibration = calibration(constant=-3.0, uncertainty=0.5)
    result = upscaler.upscale(lr_image, options)
    assert list(result.maps)[:2] == ["uncertainty", "uncertainty_raw"]
    assert np.array_equal(result.maps["uncertainty_raw"], raw.maps["uncertainty"])
    assert np.array_equal(result.sr_image, raw.sr_image)
    expected = np.exp(-3 + 0.5 * np.log(result.maps["uncertainty_raw"] + 1e-3))
    assert np.allclose(result.maps["uncertainty"], expected, rtol=1e-4)
    quantiles = result.trust["uncertainty_quantiles"]
    assert quantiles["p50"] == pytest.approx(float(np.median(result.maps["uncertainty"])))
    assert set(result.maps) - {"uncertainty_raw"} == set(raw.maps)
