"""Presets and interventions: what they switch off is off, and the default path stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.configs import SamplerConfig
from models.network import M3ESR
from models.pipeline import Upscaler, count_steps
from models.requests import Intervention, UpscaleOptions
from models.resize import resize
from models.routing.coarse import upscale
from tests.unit.models.test_pipeline import picture
from tests.unit.models.tiny import tiny_upscaler


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return tiny_upscaler()


def test_fast_is_the_coarse_network_alone(upscaler, monkeypatch):
    for part in ("render", "route", "prepare", "predict_from"):
        monkeypatch.setattr(M3ESR, part, lambda *_: pytest.fail("the diffusion ran"))
    lr_image = picture(16, 20)
    result = upscaler.upscale(lr_image, UpscaleOptions(preset="fast", color_correction="none"))
    assert (result.fusion, result.num_steps, result.caption, result.temperatures) == ("skipped", 0, "", {})
    assert set(result.maps) == {"uncertainty"}
    with torch.inference_mode():
        lr = torch.from_numpy(lr_image).permute(2, 0, 1)[None]
        upscaled, coarse_sr, uncertainty_map = upscaler.network.estimate(lr)
        options = UpscaleOptions(color_correction="none")
        composed = upscaler.compose(coarse_sr, lr, upscaled, uncertainty_map, options)
        expected = upscaler.finish(composed, lr_image, UpscaleOptions())
    assert np.allclose(result.sr_image, expected, atol=1e-6)


def test_fast_progress_rises_to_one(upscaler):
    events = []
    upscaler.upscale(picture(204, 16), UpscaleOptions(preset="fast"), events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert {event.stage for event in events} == {"coarse", "output"}


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 2), ({"preset": "fast"}, 0), ({"preset": "best"}, 7), ({"preset": "fast", "num_steps": 3}, 3)],
)
def test_steps_follow_the_preset_unless_they_are_given(options, steps):
    assert count_steps(UpscaleOptions(**options), SamplerConfig(num_steps=2, best_num_steps=7)) == steps


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="unknown preset 'quick'; known: fast, balanced, best"):
        UpscaleOptions(preset="quick")


def test_routing_off_uses_the_constants_and_shows_them(upscaler):
    lr_image = picture(16, 16)
    weights = {"depth": 0.25, "edge": 0.75}
    options = UpscaleOptions(modalities=dict.fromkeys(weights, 1.0), intervention=Intervention(expert_weights=weights))
    result = upscaler.upscale(lr_image, options)
    assert {name: float(np.unique(result.maps[name])[0]) for name in weights} == weights
    routed = upscaler.upscale(lr_image, UpscaleOptions(modalities=dict.fromkeys(weights, 1.0)))
    assert not np.array_equal(result.sr_image, routed.sr_image)


def test_temperature_off_is_plain_attention_at_every_step(upscaler):
    lr_image = picture(16, 16)
    plain = upscaler.upscale(lr_image, UpscaleOptions(intervention=Intervention(temperature=1.0)))
    assert {value for name in ("depth", "dino") for value in plain.temperatures[name]} == {1.0}
    default = upscaler.upscale(lr_image, UpscaleOptions())
    assert not np.array_equal(plain.sr_image, default.sr_image)
    with pytest.raises(ValueError, match="must be above 0"):
        Intervention(temperature=0.0)


def test_the_result_is_nearer_to_the_lr_image_by_the_share_of_consistency(upscaler, monkeypatch):
    lr = torch.from_numpy(picture(32, 32)).permute(2, 0, 1)[None]
    upscaled, uncertain = upscale(lr, 4), torch.ones(1, 1, 8, 8)
    softened = 0.8 * upscaled + 0.1  # all of it at every place a little off

    def missed(consistency: float) -> float:
        sampler = replace(upscaler.config.sampler, consistency=consistency)
        monkeypatch.setattr(upscaler, "config", replace(upscaler.config, sampler=sampler))
        options = UpscaleOptions(color_correction="none")
        composed = upscaler.compose(softened, lr, upscaled, uncertain, options)
        return float((resize(composed, (32, 32)) - lr).abs().mean())

    assert 0.7 < missed(0.3) / missed(0) < 0.85


def test_the_share_of_the_flow_scales_what_it_changes():
    """Without colour correction the picture moves on a line from the coarse image to the flow's."""
    lr_image, options, pictures = picture(16, 20), UpscaleOptions(color_correction="none"), []
    for share in (0.0, 0.5, 1.0):
        sampler = SamplerConfig(num_steps=1, flow_share=share, consistency=0.0, deblocking=0.0)
        pictures.append(tiny_upscaler(sampler=sampler).upscale(lr_image, options).sr_image)
    coarse, half, whole = pictures
    is_inside = (np.minimum(coarse, whole) > 0.01) & (np.maximum(coarse, whole) < 0.99)  # nothing was clipped
    assert np.abs(whole - coarse)[is_inside].max() > 0.01
    assert np.allclose(half[is_inside], (coarse + whole)[is_inside] / 2, atol=1e-5)
