"""`quality` on a tiny random checkpoint in the hub's layout: the whole run, its options and what it refuses."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbones.options import BackboneOptions
from models.backbones.quality import PublishedSampling, QualityUpscaler
from models.catalogue import MissingWeightsError
from models.requests import UpscaleOptions
from models.routing.realesrgan import SRVGGNetCompact, SRVGGNetCompactConfig
from tests.unit.models.published_tiny import save_denoiser, save_sd35

SMALL = PublishedSampling(process_side=64)  # the rule is the published one, pictures of 512 px are not for tests
ONE_STEP = UpscaleOptions(num_steps=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_denoiser(root)
    save_denoiser(root, "dit4sr_q", seed=1)
    save_sd35(root)
    return root


def load(root, **options):
    upscaler = QualityUpscaler.load(root, "cpu", BackboneOptions(models_dir=root, **options))
    upscaler.sampling = SMALL
    return upscaler


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


def picture(height=18, width=25, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def save_coarse(root: Path) -> None:
    torch.manual_seed(0)
    folder = root / "xinntao" / "Real-ESRGAN"
    folder.mkdir(parents=True)
    network = SRVGGNetCompact(SRVGGNetCompactConfig(num_feat=4, num_conv=1))
    torch.save({"params": network.state_dict()}, folder / "realesr-general-x4v3.pth")


def test_a_picture_comes_back_at_the_size_asked_for_the_same_every_time(upscaler):
    options = UpscaleOptions(scale=3, num_steps=2, seed=5)
    result = upscaler.upscale(picture(), options)
    assert result.sr_image.shape == (54, 75, 3) and result.sr_image.dtype == np.float32
    assert result.sr_image.min() >= 0 and result.sr_image.max() <= 1
    assert (result.fusion, result.maps, result.temperatures) == ("not installed", {}, {})
    assert result.trust["uncertainty_quantiles"] == {} and result.trust["lr_consistency_psnr"] > 5
    assert (result.num_steps, result.seed, result.notes) == (2, 5, ())
    again = upscaler.upscale(picture(), options)
    assert np.array_equal(result.sr_image, again.sr_image)
    other = upscaler.upscale(picture(), replace(options, seed=6))
    assert not np.array_equal(result.sr_image, other.sr_image)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (5, 40), (49, 49)])
def test_any_size_works(upscaler, size):
    assert upscaler.upscale(picture(*size), ONE_STEP).sr_image.shape == (4 * size[0], 4 * size[1], 3)


def test_an_odd_latent_works(root):
    upscaler = load(root)
    upscaler.sampling = replace(SMALL, process_side=508)  # 49 px -> 126 px -> 504 px, 63 latent cells
    assert upscaler.upscale(picture(49, 49), ONE_STEP).sr_image.shape == (196, 196, 3)


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


def test_the_official_sampling_differs_and_is_repeatable(root, upscaler):
    official = load(root, official_sampling=True)
    one, two = (official.upscale(picture(), ONE_STEP).sr_image for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, upscaler.upscale(picture(), ONE_STEP).sr_image)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_changes_no_digit(root, upscaler, offload):
    offloaded = load(root, offload=offload)
    assert offloaded.describe()["offload"] == offload
    for _ in range(2):
        sr = offloaded.upscale(picture(), ONE_STEP).sr_image
        assert np.array_equal(sr, upscaler.upscale(picture(), ONE_STEP).sr_image)


def test_half_precision_stays_near(root, upscaler):
    half = load(root, dtype="bf16")
    assert half.describe()["dtype"] == "bfloat16"
    near = np.abs(half.upscale(picture(), ONE_STEP).sr_image - upscaler.upscale(picture(), ONE_STEP).sr_image)
    assert near.mean() < 0.02


def test_memory_that_runs_out_halves_tiles_and_is_told(root):
    upscaler = load(root)
    upscaler.sampling = replace(SMALL, process_side=320)  # 40 latent cells: one tile, or two by two of 32
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


def test_a_coarse_network_brings_uncertainty_and_a_preview(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    save_coarse(tmp_path / "hub")
    upscaler, previews = load(tmp_path / "hub"), []
    result = upscaler.upscale(picture(20, 24), ONE_STEP, on_preview=lambda p: previews.append(p.image.shape))
    assert result.maps.keys() == {"uncertainty"}
    assert result.maps["uncertainty"].shape == (5, 6) and result.maps["uncertainty"].min() >= 0
    assert result.trust["uncertainty_quantiles"]["p50"] > 0
    assert previews == [(80, 96, 3)]
    without = load(root).upscale(picture(20, 24), ONE_STEP)
    assert np.array_equal(without.sr_image, result.sr_image)


def test_without_t5_it_runs_and_says_so(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub" / "stabilityai" / "stable-diffusion-3.5-medium" / "text_encoder_3")
    upscaler = load(tmp_path / "hub")
    assert upscaler.describe()["text_encoders"] == ["CLIP-L", "CLIP-bigG"]
    assert "T5 is not installed" in upscaler.upscale(picture(), ONE_STEP).notes[0]


def test_it_says_what_it_is(root, upscaler):
    told = upscaler.describe()
    assert (told["profile"], told["checkpoint"], told["device"]) == ("quality", "dit4sr_r1", "cpu")
    assert len(told["sha256"]) == 64 and told["num_parameters"] > 10_000
    assert load(root, quality_weights="dit4sr_q").denoiser.config.variant == "orig"


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
    shutil.copytree(root, tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub" / gone)
    with pytest.raises(MissingWeightsError, match=rf"{gone}.* missing. Get them with: m3esr models pull quality"):
        load(tmp_path / "hub")


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
