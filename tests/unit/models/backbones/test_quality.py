"""`quality` on a tiny random checkpoint in the hub's layout: the whole run, its options and what it refuses."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from models.backbones.quality import SD35, PublishedSampling
from models.catalogue import MissingWeightsError
from models.requests import UpscaleOptions
from tests.unit.models.backbones import hubs
from tests.unit.models.backbones.hubs import ONE_STEP, copy_without, picture, save_backbone
from tests.unit.models.published_tiny import save_denoiser

load = partial(hubs.load, profile="quality")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_backbone(root, "quality")
    save_denoiser(root, "dit4sr_q", seed=1)
    return root


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


def test_an_odd_latent_works(root):
    upscaler = load(root)
    upscaler.sampling = replace(upscaler.sampling, process_side=508)  # 49 px -> 126 px -> 504 px, 63 latent cells
    assert upscaler.upscale(picture(49, 49), ONE_STEP).sr_image.shape == (196, 196, 3)


def test_a_run_can_be_canceled_between_tiles(upscaler):
    seen = []

    def cancel(event):
        seen.append(event)
        if event.stage == "denoising" and len(seen) > 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        upscaler.upscale(picture(), UpscaleOptions(num_steps=50), cancel)
    assert seen[-1].step < 5


def test_guidance_prompts_and_colours_default_to_the_published_ones(upscaler):
    texts = []
    encode = upscaler.text.encode
    upscaler.text.encode = lambda texts_now: texts.append(texts_now) or encode(texts_now)
    try:
        default = upscaler.upscale(picture(), ONE_STEP)
        explicit = UpscaleOptions(
            num_steps=1, cfg_scale=8, color_correction="adain", negative_prompt=PublishedSampling.negative_prompt
        )
        assert np.array_equal(default.sr_image, upscaler.upscale(picture(), explicit).sr_image)
        upscaler.upscale(picture(), UpscaleOptions(num_steps=1, cfg_scale=1, prompt="a bridge"))
        upscaler.upscale(picture(), UpscaleOptions(num_steps=1, modalities={}, prompt="a bridge"))
    finally:
        del upscaler.text.encode
    added, negative = PublishedSampling.added_prompt, PublishedSampling.negative_prompt
    assert texts == [[negative, added], [negative, added], [f"a bridge {added}"], [negative, ""]]
    wavelet = upscaler.upscale(picture(), UpscaleOptions(num_steps=1, color_correction="wavelet"))
    assert not np.array_equal(default.sr_image, wavelet.sr_image)


def test_a_captioner_speaks_only_when_no_prompt_is_given(root):
    class Captioner:
        def caption(self, lr_image):
            return f"a picture of {lr_image.shape[1]} by {lr_image.shape[0]}"

    upscaler = load(root)
    upscaler.captioner = Captioner()
    assert upscaler.upscale(picture(), ONE_STEP).caption == "a picture of 25 by 18"
    assert upscaler.upscale(picture(), replace(ONE_STEP, prompt="mine")).caption == "mine"


def test_memory_that_runs_out_halves_tiles_and_is_told(root):
    upscaler = load(root)
    upscaler.sampling = replace(upscaler.sampling, process_side=320)  # 40 latent cells: one tile, or two by two of 32
    forward, asked = upscaler.denoiser.forward, []

    def in_little_memory(noisy, *rest):
        asked.append(noisy.shape[-1])
        if noisy.shape[-1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(noisy, *rest)

    upscaler.denoiser.forward = in_little_memory
    events = []
    result = upscaler.upscale(picture(16, 16), UpscaleOptions(num_steps=2), events.append)
    assert asked == [40] + 8 * [32]
    assert result.notes == ("Memory ran out: denoising tiles were halved to 32 latent cells.",)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)


def test_without_t5_it_runs_and_says_so(root, tmp_path):
    upscaler = load(copy_without(root, tmp_path / "hub", f"{SD35}/text_encoder_3"))
    assert upscaler.describe()["text_encoders"] == ["CLIP-L", "CLIP-bigG"]
    assert "T5 is not installed" in upscaler.upscale(picture(), ONE_STEP).notes[0]


def test_the_other_weights_run_by_their_own_code(root):
    other = load(root, quality_weights="dit4sr_q")
    assert other.denoiser.config.variant == "orig" and other.describe()["checkpoint"] == "dit4sr_q"


@pytest.mark.parametrize(
    "gone",
    [
        "acceptee/DiT4SR/dit4sr_r1",
        "stabilityai/stable-diffusion-3.5-medium/vae",
        "stabilityai/stable-diffusion-3.5-medium/tokenizer",
        "stabilityai/stable-diffusion-3.5-medium/scheduler",
    ],
)
def test_missing_files_are_told_with_the_command_that_gets_them(root, tmp_path, gone):
    with pytest.raises(MissingWeightsError, match=rf"{gone}.* missing. Get them with: m3esr models pull quality"):
        load(copy_without(root, tmp_path / "hub", gone))


def test_weights_that_are_no_default_are_asked_for_by_their_name(tmp_path):
    with pytest.raises(MissingWeightsError, match="m3esr models pull dit4sr-f"):
        load(tmp_path, quality_weights="dit4sr_f")


def test_another_scheduler_is_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    path = tmp_path / "hub" / "stabilityai/stable-diffusion-3.5-medium/scheduler/scheduler_config.json"
    path.write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(ValueError, match=r"is of DDPMScheduler"):
        load(tmp_path / "hub")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"offload": "disk"}, "offload"),
        ({"dtype": "int8"}, "precision"),
        ({"quality_weights": "x"}, "DiT4SR weights"),
    ],
)
def test_unknown_options_are_refused(root, options, reason):
    with pytest.raises(ValueError, match=reason):
        load(root, **options)
