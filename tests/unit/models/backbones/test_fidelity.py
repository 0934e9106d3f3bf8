"""`fidelity` on a tiny random checkpoint in the hub's layout: the whole run, its options and what it refuses."""

import json
import shutil
from dataclasses import replace
from functools import partial

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
from tests.unit.models.backbones import hubs
from tests.unit.models.backbones.hubs import ONE_STEP, SMALL_SIDE, copy_without, picture, save_backbone
from tests.unit.models.seesr_tiny import SCHEDULER, TAGGER, TAGS

load = partial(hubs.load, profile="fidelity")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_backbone(root, "fidelity")
    return root


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


def test_the_run_is_the_published_pipeline_step_by_step(upscaler):
    """Written out once more around diffusers' own scheduler: LRE start, guidance, fixed_small variance, AdaIN."""
    lr_image, seed, num_steps = picture(), 3, 4
    work = enlarge(to_tensor(lr_image, torch.device("cpu")), work_sizes(18, 25, 4, 64))
    with torch.no_grad():
        vae, seesr = upscaler.vae.network, upscaler.seesr
        lr_latent = vae.encode(2 * work - 1).latent_dist.mode() * 0.18215
        tokens = upscaler.prompts.read(to_tensor(lr_image, torch.device("cpu"))).tokens.expand(2, -1, -1)
        texts = [PublishedSampling.negative_prompt, ", ".join(TAGS) + ", a bridge,clean, high-resolution, 8k"]
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


def test_a_large_latent_goes_in_tiles_that_see_their_part_of_the_picture(root, upscaler):
    tiled = load(root)
    tiled.sampling = replace(tiled.sampling, tile=8)
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
    upscaler.sampling = PublishedSampling(process_side=SMALL_SIDE)
    assert upscaler.upscale(picture(), replace(ONE_STEP, prompt="mine")).caption == "a picture of 25 by 18, mine"


def test_without_ram_it_runs_and_says_so(root, tmp_path):
    upscaler = load(copy_without(root, tmp_path / "hub", RAM_FILE))
    result = upscaler.upscale(picture(), replace(ONE_STEP, prompt="mine"))
    assert result.caption == "mine" and "RAM is not installed" in result.notes[0]
    assert upscaler.describe()["image_tokens"] == "none"


def test_memory_that_runs_out_halves_tiles_and_is_told(root):
    upscaler = load(root)
    upscaler.sampling = replace(upscaler.sampling, process_side=320)  # 40 latent cells
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
    with pytest.raises((MissingWeightsError, ValueError), match=reason):
        load(copy_without(root, tmp_path / "hub", gone))


def test_the_stock_unet_of_stable_diffusion_is_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    path = tmp_path / "hub" / UNET / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_image_cross_attention": False}))
    with pytest.raises(ValueError, match="no SeeSR network"):
        load(tmp_path / "hub")
