"""`fidelity` on a tiny random checkpoint in the hub's layout: the whole run, its options and what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from models.backbones.fidelity import FidelityUpscaler, PublishedSampling
from models.backbones.options import BackboneOptions
from models.backbones.sd21 import CONTROLNET, SD21, UNET
from models.backbones.sizes import enlarge, work_sizes
from models.catalogue import MissingWeightsError
from models.colour import correct_colour
from models.denoising.tiled import tile_places
from models.modalities.dape.weights import RAM_FILE
from models.requests import UpscaleOptions
from models.runs import to_answer, to_tensor
from tests.unit.models.backbones.test_quality import save_coarse
from tests.unit.models.seesr_tiny import SCHEDULER, TAGGER, TAGS, save_sd21, save_seesr, save_tagger

SMALL = PublishedSampling(process_side=64)  # the rule is the published one, pictures of 512 px are not for tests
ONE_STEP = UpscaleOptions(num_steps=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_seesr(root)
    save_sd21(root)
    save_tagger(root, threshold=0.0)
    return root


def load(root, **options):
    upscaler = FidelityUpscaler.load(root, "cpu", BackboneOptions(models_dir=root, **options), tagger=TAGGER)
    upscaler.sampling = SMALL
    return upscaler


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


def picture(height=18, width=25, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def test_a_picture_comes_back_at_the_size_asked_for_the_same_every_time(upscaler):
    options = UpscaleOptions(scale=3, num_steps=2, seed=5)
    result = upscaler.upscale(picture(), options)
    assert result.sr_image.shape == (54, 75, 3) and result.sr_image.dtype == np.float32
    assert result.sr_image.min() >= 0 and result.sr_image.max() <= 1
    assert (result.fusion, result.maps, result.temperatures) == ("not installed", {}, {})
    assert result.caption == ", ".join(TAGS)
    assert (result.num_steps, result.seed, result.notes) == (2, 5, ())
    assert np.array_equal(result.sr_image, upscaler.upscale(picture(), options).sr_image)
    other = upscaler.upscale(picture(), replace(options, seed=6))
    assert not np.array_equal(result.sr_image, other.sr_image)


def test_the_run_is_the_published_pipeline_step_by_step(upscaler):
    """Written out once more around diffusers' own scheduler: LRE start, guidance, fixed_small variance, AdaIN."""
    lr_image, seed, num_steps = picture(), 3, 4
    work = enlarge(to_tensor(lr_image, torch.device("cpu")), work_sizes(18, 25, 4, 64))
    with torch.no_grad():
        vae, seesr = upscaler.vae.network, upscaler.seesr
        lr_latent = vae.encode(2 * work - 1).latent_dist.mode() * 0.18215
        tokens = upscaler.prompts.read(to_tensor(lr_image, torch.device("cpu"))).tokens.expand(2, -1, -1)
        texts = [SMALL.negative_prompt, ", ".join(TAGS) + ", a bridge,clean, high-resolution, 8k"]
        text = upscaler.text.encode(texts)
        scheduler, generator = DDPMScheduler.from_config(SCHEDULER), torch.Generator().manual_seed(seed)
        scheduler.set_timesteps(num_steps)
        latent = torch.randn(lr_latent.shape, generator=generator)
        latent = scheduler.add_noise(lr_latent, latent, torch.tensor([999]))
        for timestep in scheduler.timesteps:
            both = torch.cat([latent] * 2)
            residuals = seesr.controlnet(both, timestep, text, torch.cat([work] * 2), tokens, 1.0)
            uncond, cond = seesr.unet(both, timestep, text, tokens, residuals).chunk(2)
            step = scheduler.step(uncond + 5.5 * (cond - uncond), timestep, latent, generator=generator)
            latent = step.prev_sample
        decoded = (vae.decode(latent / 0.18215).sample / 2 + 0.5).clamp(0, 1)
        expected = to_answer(correct_colour(decoded, work, "adain"), lr_image, (100, 72))
    options = UpscaleOptions(num_steps=num_steps, seed=seed, prompt="a bridge")
    assert np.abs(upscaler.upscale(lr_image, options).sr_image - expected).max() < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (5, 40), (49, 49)])
def test_any_size_works(upscaler, size):
    assert upscaler.upscale(picture(*size), ONE_STEP).sr_image.shape == (4 * size[0], 4 * size[1], 3)


def test_greyscale_stays_grey(upscaler):
    grey = np.repeat(picture()[..., :1], 3, 2)
    sr = upscaler.upscale(grey, ONE_STEP).sr_image
    assert (sr[..., 0] == sr[..., 1]).all() and (sr[..., 0] == sr[..., 2]).all()


def test_a_large_latent_goes_in_tiles_that_see_their_part_of_the_picture(root, upscaler):
    tiled = load(root)
    tiled.sampling = replace(SMALL, tile=8)
    seen, forward = [], tiled.seesr.controlnet.forward

    def watching(noisy, time, text, lr_image, *rest):
        seen.append((tuple(noisy.shape[-2:]), lr_image[:1].clone()))
        return forward(noisy, time, text, lr_image, *rest)

    tiled.seesr.controlnet.forward = watching
    large = picture(18, 40)
    result = tiled.upscale(large, ONE_STEP)
    work = enlarge(to_tensor(large, torch.device("cpu")), work_sizes(18, 40, 4, 64))
    places = tile_places(9, 20, tile=8, overlap=4)
    assert len(places) == len(seen) == 8
    for (_, rows, columns), (sides, lr_image) in zip(places, seen, strict=True):
        assert sides == (8, 8)
        pixels = slice(8 * rows.start, 8 * rows.stop), slice(8 * columns.start, 8 * columns.stop)
        assert torch.equal(lr_image, work[..., pixels[0], pixels[1]])
    whole = upscaler.upscale(large, ONE_STEP).sr_image
    assert not np.array_equal(result.sr_image, whole)
    assert np.abs(result.sr_image - whole).mean() < 0.1


def test_progress_names_each_step_and_never_falls(upscaler):
    events = []
    upscaler.upscale(picture(), UpscaleOptions(num_steps=3), events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert list(dict.fromkeys(e.stage for e in events)) == ["coarse", "perception", "encoding", "denoising", "output"]
    assert {e.step for e in events if e.stage == "denoising"} == {0, 1, 2, 3}


def test_a_run_can_be_canceled_between_steps(upscaler):
    seen = []

    def cancel(event):
        seen.append(event)
        if event.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        upscaler.upscale(picture(), UpscaleOptions(num_steps=50), cancel)
    assert seen[-1].step == 2


def test_prompts_are_the_published_ones(upscaler):
    texts, encode = [], upscaler.text.encode
    upscaler.text.encode = lambda texts_now: texts.append(texts_now) or encode(texts_now)
    try:
        upscaler.upscale(picture(), ONE_STEP)
        upscaler.upscale(picture(), replace(ONE_STEP, cfg_scale=1, prompt=" a bridge "))
        off = upscaler.upscale(picture(), replace(ONE_STEP, modalities={}, negative_prompt="dull"))
    finally:
        del upscaler.text.encode
    tags = ", ".join(TAGS)
    assert texts == [
        ["dotted, noise, blur, lowres, smooth", f"{tags}, ,clean, high-resolution, 8k"],
        [f"{tags}, a bridge,clean, high-resolution, 8k"],
        ["dull", ""],
    ]
    assert off.caption == ""


def test_a_captioner_speaks_in_place_of_the_tags(root):
    class Captioner:
        def caption(self, lr_image):
            return f"a picture of {lr_image.shape[1]} by {lr_image.shape[0]}"

    upscaler = FidelityUpscaler.load(root, "cpu", BackboneOptions(), Captioner(), tagger=TAGGER)
    upscaler.sampling = SMALL
    assert upscaler.upscale(picture(), replace(ONE_STEP, prompt="mine")).caption == "a picture of 25 by 18, mine"


def test_without_ram_it_runs_and_says_so(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    (tmp_path / "hub" / RAM_FILE).unlink()
    upscaler = load(tmp_path / "hub")
    result = upscaler.upscale(picture(), replace(ONE_STEP, prompt="mine"))
    assert result.caption == "mine" and "RAM is not installed" in result.notes[0]
    assert upscaler.describe()["image_tokens"] == "none"


def test_the_official_sampling_differs_and_is_repeatable(root, upscaler):
    official = load(root, official_sampling=True)
    one, two = (official.upscale(picture(), ONE_STEP).sr_image for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, upscaler.upscale(picture(), ONE_STEP).sr_image)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_changes_no_digit(root, upscaler, offload):
    offloaded = load(root, offload=offload)
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
    upscaler.sampling = replace(SMALL, process_side=320)  # 40 latent cells
    forward, asked = upscaler.seesr.unet.forward, []

    def in_little_memory(noisy, *rest):
        asked.append(noisy.shape[-1])
        if noisy.shape[-1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(noisy, *rest)

    upscaler.seesr.unet.forward = in_little_memory
    upscaler.sampling = replace(upscaler.sampling, tile=64)
    result = upscaler.upscale(picture(16, 16), ONE_STEP)
    assert asked == [40] + 4 * [32]
    assert result.notes == ("Memory ran out: denoising tiles were halved to 32 latent cells.",)


def test_a_coarse_network_brings_uncertainty_and_a_preview(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    save_coarse(tmp_path / "hub")
    upscaler, previews = load(tmp_path / "hub"), []
    result = upscaler.upscale(picture(20, 24), ONE_STEP, on_preview=lambda p: previews.append(p.image.shape))
    assert result.maps.keys() == {"uncertainty"}
    assert result.maps["uncertainty"].shape == (5, 6)
    assert previews == [(80, 96, 3)]


def test_it_says_what_it_is(upscaler):
    told = upscaler.describe()
    assert (told["profile"], told["checkpoint"], told["device"]) == ("fidelity", "seesr", "cpu")
    assert len(told["sha256"]) == 64 and told["num_parameters"] > 10_000


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (UNET, "m3esr models pull fidelity"),
        (f"{SD21}/vae", "m3esr models pull fidelity"),
        (f"{SD21}/scheduler/scheduler_config.json", "scheduler"),
        (f"{CONTROLNET}/config.json", "m3esr models pull fidelity"),
        ("CSWRY/SeeSR/DAPE.pth", r"DAPE\.pth is missing"),
    ],
)
def test_missing_files_are_told_with_what_to_do(root, tmp_path, gone, reason):
    shutil.copytree(root, tmp_path / "hub")
    path = tmp_path / "hub" / gone
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises((MissingWeightsError, ValueError), match=reason):
        load(tmp_path / "hub")


def test_the_stock_unet_of_stable_diffusion_is_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    path = tmp_path / "hub" / UNET / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_image_cross_attention": False}))
    with pytest.raises(ValueError, match="no SeeSR network"):
        load(tmp_path / "hub")
