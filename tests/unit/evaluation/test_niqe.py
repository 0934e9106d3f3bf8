"""NIQE: its parts against closed forms and a reference, and the order that it must put images in."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.data import read_image
from evaluation.errors import EvaluationError
from evaluation.metrics import luma
from evaluation.niqe import Niqe, features, fit_asymmetric, halve

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
PHOTOGRAPHS = {name: read_image(FIXTURES / "originals" / f"{name}.jpg") for name in ("bridge", "hallway")}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_features_are_those_of_the_reference(name):
    reference = json.loads((FIXTURES / "niqe" / "features.json").read_text())[name]
    found = features(luma(PHOTOGRAPHS[name]).round()).mean(0)
    assert found.shape == (36,)
    assert np.abs(found - reference).max() < 1e-3


@pytest.mark.parametrize(("shape", "draw"), [(2.0, "normal"), (1.0, "laplace")])
def test_a_symmetric_law_is_recognised(shape, draw):
    values = getattr(np.random.default_rng(0), draw)(0, 3, (400, 400))
    found, left, right = fit_asymmetric(values)
    assert found == pytest.approx(shape, rel=0.02)
    # a generalised Gaussian of scale a has density exp(-|x/a|^shape): a is 3 sqrt 2 of a normal law, 3 of a Laplacian
    assert left == pytest.approx(3 * 2**0.5 if shape == 2 else 3, rel=0.03)
    assert right == pytest.approx(left, rel=0.03)


def test_each_side_has_its_own_scale():
    rng = np.random.default_rng(1)
    side = np.abs(rng.normal(0, 1, 160_000))
    # an asymmetric Gaussian: a side is drawn in proportion to its scale
    values = np.where(rng.random(160_000) < 1 / 4, -side, 3 * side).reshape(400, 400)
    shape, left, right = fit_asymmetric(values)
    assert (shape, left, right) == pytest.approx((2.0, 2**0.5, 3 * 2**0.5), rel=0.03)


def test_halving_is_an_antialiased_bicubic_inside():
    y = luma(PHOTOGRAPHS["bridge"])
    pillow = np.asarray(Image.fromarray(y.astype(np.float32)).resize((256, 256), Image.Resampling.BICUBIC))
    assert np.abs(halve(y) - pillow)[4:-4, 4:-4].max() < 1e-3
    assert np.allclose(halve(np.full((10, 12), 7.0)), 7.0)


@pytest.fixture(scope="module")
def niqe(tmp_path_factory) -> Niqe:
    """With a pristine model of the test photographs, in the form of the published one."""
    rows = np.concatenate([features(luma(image).round()) for image in PHOTOGRAPHS.values()])
    path = tmp_path_factory.mktemp("niqe") / "pristine.npz"
    np.savez(path, mu_pris_param=rows.mean(0)[None], cov_pris_param=np.cov(rows, rowvar=False))
    return Niqe(path)


def test_blur_and_noise_are_farther_from_pristine_than_the_photograph(niqe):
    image = PHOTOGRAPHS["bridge"]
    blurred = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC).resize((512, 512)))
    noise = np.random.default_rng(0).normal(0, 25, image.shape)
    noisy = (image + noise).clip(0, 255).astype(np.uint8)
    assert niqe(image) < 0.6 * min(niqe(blurred), niqe(noisy))


def test_a_flat_image_has_no_niqe_and_a_small_one_is_refused(niqe):
    assert np.isnan(niqe(np.full((200, 200, 3), 90, np.uint8)))
    with pytest.raises(EvaluationError, match="192 px a side or more, not 200 x 150"):
        niqe(np.zeros((150, 200, 3), np.uint8))


def test_a_file_that_is_none_is_named(tmp_path):
    wrong = tmp_path / "x.npz"
    np.savez(wrong, other=np.zeros(3))
    with pytest.raises(EvaluationError, match=r"x\.npz holds no NIQE parameters"):
        Niqe(wrong)
