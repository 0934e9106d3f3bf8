"""What the one door promises, on a tiny random network."""

import numpy as np
import pytest

from models.pipeline import PATCH, REGION, REGION_OVERLAP, Upscaler, output_size
from models.requests import ProgressEvent, UpscaleOptions
from models.tiling import plan_tiles
from tests.unit.models.tiny import tiny_upscaler


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return tiny_upscaler()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 5), (48, 48), (50, 131)])
def test_any_size_comes_back_four_times_larger(upscaler, size):
    result = upscaler.upscale(picture(*size), UpscaleOptions())
    assert result.sr_image.shape == (4 * size[0], 4 * size[1], 3)
    assert result.sr_image.dtype == np.float32
    assert result.sr_image.min() >= 0 and result.sr_image.max() <= 1
    for values in result.maps.values():
        assert values.shape == (-(-size[0] // 4), -(-size[1] // 4))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(upscaler):
    lr_image = picture(20, 24)
    images = [upscaler.upscale(lr_image, UpscaleOptions(seed=seed)).sr_image.tobytes() for seed in (7, 7, 8)]
    assert images[0] == images[1] != images[2]


def test_every_modality_that_is_on_has_a_map_and_no_other(upscaler):
    options = UpscaleOptions(modalities={"depth": 1.0, "edge": 0.5, "dino": 0.0})
    result = upscaler.upscale(picture(16, 16), options)
    assert set(result.maps) == {"uncertainty", "depth", "edge"}
    assert set(result.temperatures) == {"sigma", "depth", "edge"}
    assert len(result.temperatures["sigma"]) == len(result.temperatures["depth"]) == result.num_steps


def test_weight_maps_lie_between_zero_and_one_whatever_the_strength(upscaler):
    result = upscaler.upscale(picture(16, 16), UpscaleOptions(modalities={"depth": 2.0}))
    assert (result.maps["depth"] >= 0).all() and (result.maps["depth"] <= 1).all()


def test_a_modality_changes_the_picture_and_so_does_its_strength(upscaler):
    lr_image = picture(16, 16)
    results = [
        upscaler.upscale(lr_image, UpscaleOptions(modalities=m)).sr_image for m in ({}, {"depth": 1.0}, {"depth": 2.0})
    ]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[1], results[2])


def test_without_visual_modalities_there_is_only_the_uncertainty_map(upscaler):
    result = upscaler.upscale(picture(16, 16), UpscaleOptions(modalities={"text": 1.0}))
    assert set(result.maps) == {"uncertainty"} and result.temperatures == {}


def test_the_prompt_leads_the_caption_and_changes_the_picture(upscaler):
    lr_image = picture(16, 16)
    plain = upscaler.upscale(lr_image, UpscaleOptions())
    prompted = upscaler.upscale(lr_image, UpscaleOptions(prompt="sky"))
    assert prompted.caption == f"sky, {plain.caption}"
    assert not np.array_equal(plain.sr_image, prompted.sr_image)
    assert upscaler.upscale(lr_image, UpscaleOptions(modalities={"depth": 1.0})).caption == ""


def test_guidance_needs_two_answers_and_changes_the_picture(upscaler):
    lr_image = picture(16, 16)
    plain = upscaler.upscale(lr_image, UpscaleOptions(cfg_scale=1.0)).sr_image
    guided = upscaler.upscale(lr_image, UpscaleOptions(cfg_scale=4.0)).sr_image
    assert not np.array_equal(plain, guided)


def test_grey_stays_grey(upscaler):
    lr_image = np.repeat(picture(18, 18)[..., :1], 3, 2)
    sr = upscaler.upscale(lr_image, UpscaleOptions()).sr_image
    assert np.array_equal(sr[..., 0], sr[..., 1]) and np.array_equal(sr[..., 0], sr[..., 2])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (UpscaleOptions(scale=2.0), (20, 26)),
        (UpscaleOptions(scale=1.5), (15, 20)),
        (UpscaleOptions(width=33, height=21), (21, 33)),
    ],
)
def test_the_output_has_the_size_asked_for(upscaler, options, expected):
    assert upscaler.upscale(picture(10, 13), options).sr_image.shape[:2] == expected
    assert output_size(13, 10, options) == expected[::-1]


def test_progress_rises_to_one_and_names_every_stage(upscaler):
    events: list[ProgressEvent] = []
    upscaler.upscale(picture(204, 16), UpscaleOptions(num_steps=3), events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert {event.stage for event in events} == {"coarse", "perception", "routing", "denoising", "output"}
    assert max(event.step for event in events if event.stage == "denoising") == 3


def test_a_callback_that_raises_ends_the_work_at_once(upscaler):
    class CancelledError(Exception):
        pass

    seen = []

    def cancel(event: ProgressEvent) -> None:
        seen.append(event)
        if event.stage == "denoising" and event.step == 1:
            raise CancelledError

    with pytest.raises(CancelledError):
        upscaler.upscale(picture(16, 16), UpscaleOptions(num_steps=5), cancel)
    assert seen[-1].step == 1


def test_tiles_leave_no_seam(upscaler):
    """A long image is cut into regions; where two meet, the step between neighbours is like elsewhere."""
    x = np.linspace(0.2, 0.8, 300, dtype=np.float32)
    lr_image = np.repeat(np.repeat(x[None, :, None], 20, 0), 3, 2)
    sr = upscaler.upscale(lr_image, UpscaleOptions()).sr_image.mean((0, 2))
    steps = np.abs(np.diff(np.convolve(sr, np.ones(8) / 8, "valid")))
    regions = plan_tiles(20 // PATCH, 300 // PATCH, REGION, REGION_OVERLAP, even=True)
    borders = {border for region in regions for border in (region.columns.start, region.columns.stop)} - {0, 75}
    assert len(borders) == 2
    seams = [round(4 * PATCH * border) for border in (*borders, sum(borders) / 2)]
    assert max(steps[s - 8 : s + 8].max() for s in seams) < 3 * np.median(steps) + 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 5.0}, "outside \\(0, 4\\]"),
        ({"num_steps": 0}, "outside 1..100"),
        ({"modalities": {"smell": 1.0}}, "unknown modality 'smell'"),
        ({"modalities": {"depth": 3.0}}, "outside 0..2"),
        ({"width": 10}, "both width and height"),
    ],
)
def test_bad_options_are_refused_with_advice(wrong, message):
    with pytest.raises(ValueError, match=message):
        UpscaleOptions(**wrong)


def test_a_missing_profile_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="profile 'compact' is not installed"):
        Upscaler.load("compact", checkpoint=tmp_path)
