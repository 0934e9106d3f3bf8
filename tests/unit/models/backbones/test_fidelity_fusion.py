"""Our fusion beside SeeSR: absent without weights, its tokens appended to the image tokens with them."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from models.fusion.image_tokens import ImageTokenFusion
from tests.unit.models.backbones import hubs
from tests.unit.models.backbones.hubs import ONE_STEP, picture, save_fused
from tests.unit.models.seesr_tiny import FUSION

load = partial(hubs.load, profile="fidelity")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_fused(root, "fidelity")
    return root


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


def test_fused_tokens_are_appended_to_those_of_dape(upscaler):
    seen, forward = [], upscaler.seesr.unet.forward

    def watching(noisy, time, text, tokens, *rest):
        seen.append(tuple(tokens.shape))
        return forward(noisy, time, text, tokens, *rest)

    upscaler.seesr.unet.forward = watching
    try:
        upscaler.upscale(picture(), ONE_STEP)
        upscaler.upscale(picture(), replace(ONE_STEP, modalities={"text": 1.0}))
    finally:
        del upscaler.seesr.unet.forward
    assert seen == [(2, 65 + 4 * 6, 512), (2, 65, 512)]


def test_tiles_get_the_tokens_of_their_own_place(root):
    tiled = load(root)
    tiled.sampling = replace(tiled.sampling, tile=8)
    events = []
    result = tiled.upscale(picture(), ONE_STEP, events.append)
    assert result.sr_image.shape == (72, 100, 3)
    assert "routing" in {event.stage for event in events}


def test_with_every_weight_at_zero_the_lr_patches_pass_unchanged():
    network = ImageTokenFusion(FUSION).eval()
    latent = torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        prepared = network.prepare(latent, {"dino": torch.randn(1, 128, 2, 3)}, {"dino": torch.zeros(1, 2, 3)})
        expected = network.to_tokens(network.embed(latent))
        assert torch.allclose(network(prepared, torch.tensor([500.0])), expected)
