"""What is true of both public backbones on tiny random checkpoints in the hub's layout."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from models.requests import UpscaleOptions
from tests.unit.models.backbones.hubs import ONE_STEP, load, picture, save_backbone, save_coarse
from tests.unit.models.seesr_tiny import TAGS


@pytest.fixture(scope="module")
def root(profile, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_backbone(root, profile)
    return root


def test_a_picture_comes_back_at_the_size_asked_for_the_same_every_time(upscaler, profile):
    options = UpscaleOptions(scale=3, num_steps=2, seed=5)
    result = upscaler.upscale(picture(), options)
    assert result.sr_image.shape == (54, 75, 3) and result.sr_image.dtype == np.float32
    assert result.sr_image.min() >= 0 and result.sr_image.max() <= 1
    assert (result.fusion, result.maps, result.temperatures) == ("not installed", {}, {})
    assert result.trust["uncertainty_quantiles"] == {} and result.trust["lr_consistency_psnr"] > 5
    assert result.caption == {"quality": "", "fidelity": ", ".join(TAGS)}[profile]
    assert (result.num_steps, result.seed, result.notes) == (2, 5, ())
    assert np.array_equal(result.sr_image, upscaler.upscale(picture(), options).sr_image)
    other = upscaler.upscale(picture(), replace(options, seed=6))
    assert not np.array_equal(result.sr_image, other.sr_image)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (5, 40), (49, 49)])
def test_any_size_works(upscaler, size):
    assert upscaler.upscale(picture(*size), ONE_STEP).sr_image.shape == (4 * size[0], 4 * size[1], 3)


def test_greyscale_stays_grey(upscaler):
    grey = np.repeat(picture()[..., :1], 3, 2)
    sr = upscaler.upscale(grey, ONE_STEP).sr_image
    assert (sr[..., 0] == sr[..., 1]).all() and (sr[..., 0] == sr[..., 2]).all()


def test_progress_names_each_step_and_never_falls(upscaler):
    events = []
    upscaler.upscale(picture(), UpscaleOptions(num_steps=3), events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert list(dict.fromkeys(e.stage for e in events)) == ["coarse", "perception", "encoding", "denoising", "output"]
    assert {e.step for e in events if e.stage == "denoising"} == {0, 1, 2, 3}


def test_the_official_sampling_differs_and_is_repeatable(root, profile, upscaler):
    official = load(root, profile, official_sampling=True)
    one, two = (official.upscale(picture(), ONE_STEP).sr_image for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, upscaler.upscale(picture(), ONE_STEP).sr_image)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_changes_no_digit(root, profile, upscaler, offload):
    offloaded = load(root, profile, offload=offload)
    assert offloaded.describe()["offload"] == offload
    for _ in range(2):
        sr = offloaded.upscale(picture(), ONE_STEP).sr_image
        assert np.array_equal(sr, upscaler.upscale(picture(), ONE_STEP).sr_image)


def test_half_precision_stays_near(root, profile, upscaler):
    half = load(root, profile, dtype="bf16")
    assert half.describe()["dtype"] == "bfloat16"
    near = np.abs(half.upscale(picture(), ONE_STEP).sr_image - upscaler.upscale(picture(), ONE_STEP).sr_image)
    assert near.mean() < 0.02


def test_a_coarse_network_brings_uncertainty_and_a_preview(root, profile, upscaler, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    save_coarse(tmp_path / "hub")
    with_coarse, previews = load(tmp_path / "hub", profile), []
    result = with_coarse.upscale(picture(20, 24), ONE_STEP, on_preview=lambda p: previews.append(p.image.shape))
    assert result.maps.keys() == {"uncertainty"}
    assert result.maps["uncertainty"].shape == (5, 6) and result.maps["uncertainty"].min() >= 0
    assert result.trust["uncertainty_quantiles"]["p50"] > 0
    assert previews == [(80, 96, 3)]
    without = upscaler.upscale(picture(20, 24), ONE_STEP)
    assert np.array_equal(without.sr_image, result.sr_image)


def test_it_says_what_it_is(profile, upscaler):
    told, checkpoint = upscaler.describe(), {"quality": "dit4sr_r1", "fidelity": "seesr"}[profile]
    assert (told["profile"], told["checkpoint"], told["device"]) == (profile, checkpoint, "cpu")
    assert len(told["sha256"]) == 64 and told["num_parameters"] > 10_000
    assert told["fusion"] == "not installed"
