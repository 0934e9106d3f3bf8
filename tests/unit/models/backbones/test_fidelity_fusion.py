"""Our fusion beside SeeSR: absent without weights, its tokens appended to the image tokens with them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.backbones.fusion_files import SEESR, fusion_file
from models.catalogue import MissingWeightsError
from models.fusion.image_tokens import ImageTokenConfig, ImageTokenFusion
from models.fusion.tiled import FusedTokens
from models.requests import UpscaleOptions
from models.routing.router import RouterConfig
from models.sources import SOURCES
from tests.unit.models.backbones.test_fidelity import ONE_STEP, SMALL, load, picture
from tests.unit.models.backbones.test_quality import save_coarse
from tests.unit.models.published import tiny
from tests.unit.models.seesr_tiny import FUSION, save_fusion, save_sd21, save_seesr, save_tagger, save_vqgan

NAMES = ["segmentation", "depth", "edge", "dino"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_seesr(root)
    save_sd21(root)
    save_tagger(root)
    save_coarse(root)
    tiny.extractors(root)
    save_vqgan(root)
    save_fusion(root)
    return root


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


@pytest.fixture(scope="module")
def plain(root):
    """SeeSR alone, working at the same size."""
    upscaler = load(root)
    upscaler.fusion = None
    return upscaler


def test_weights_and_temperatures_of_every_modality_are_told(upscaler, plain):
    options = UpscaleOptions(num_steps=3, modalities=dict.fromkeys((*NAMES, "text"), 1.0))
    result = upscaler.upscale(picture(), options)
    assert result.fusion == "trained" and upscaler.describe()["fusion"] == "trained"
    assert list(result.maps) == ["uncertainty", *NAMES]
    rows, columns = result.maps["uncertainty"].shape
    assert (rows, columns) == (4, 6)  # 64 x 96 px worked at, 16 px each
    for name in NAMES:
        assert result.maps[name].shape == (rows, columns)
        assert result.maps[name].min() >= 0 and result.maps[name].max() <= 1
    assert result.temperatures["sigma"] == pytest.approx([0.667, 0.334, 0.001])
    assert all(len(result.temperatures[name]) == 3 and min(result.temperatures[name]) > 0 for name in NAMES)
    assert not np.array_equal(result.sr_image, plain.upscale(picture(), options).sr_image)


def test_with_every_modality_off_it_is_seesr_to_the_last_digit(upscaler, plain):
    off = replace(ONE_STEP, modalities={"text": 1.0})
    result = upscaler.upscale(picture(), off)
    assert np.array_equal(result.sr_image, plain.upscale(picture(), off).sr_image)
    assert (list(result.maps), result.temperatures) == (["uncertainty"], {})


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


def test_a_modality_that_is_off_says_nothing(upscaler):
    one = replace(ONE_STEP, modalities={"edge": 1.0})
    result = upscaler.upscale(picture(), one)
    assert list(result.maps) == ["uncertainty", "edge"] and set(result.temperatures) == {"sigma", "edge"}
    stronger = upscaler.upscale(picture(), replace(ONE_STEP, modalities={"edge": 2.0}))
    assert np.array_equal(stronger.maps["edge"], result.maps["edge"])
    assert not np.array_equal(stronger.sr_image, result.sr_image)


def test_tiles_get_the_tokens_of_their_own_place(root):
    tiled = load(root)
    tiled.sampling = replace(SMALL, tile=8)
    events = []
    result = tiled.upscale(picture(), ONE_STEP, events.append)
    assert result.sr_image.shape == (72, 100, 3)
    assert "routing" in {event.stage for event in events}


def test_a_tile_in_the_middle_reads_the_middle_of_the_maps():
    torch.manual_seed(0)
    network = ImageTokenFusion(FUSION).eval()
    latent, edges = torch.randn(1, 4, 16, 20), torch.randn(1, 4, 8, 10)
    weights = torch.rand(1, 8, 10)
    whole = FusedTokens(network, latent, {"edge": edges}, {"edge": weights})
    cut = FusedTokens(
        network, latent[..., 4:12, 6:14], {"edge": edges[..., 2:6, 3:7]}, {"edge": weights[..., 2:6, 3:7]}
    )
    with torch.no_grad():
        middle = whole(slice(4, 12), slice(6, 14), 500)
        assert middle.shape == (1, 16, 512)
        assert torch.equal(middle, cut(slice(0, 8), slice(0, 8), 500))
        assert not torch.equal(middle, whole(slice(4, 12), slice(6, 14), 20))  # temperatures follow the timestep


def test_with_every_weight_at_zero_the_lr_patches_pass_unchanged():
    network = ImageTokenFusion(FUSION).eval()
    latent = torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        prepared = network.prepare(latent, {"dino": torch.randn(1, 128, 2, 3)}, {"dino": torch.zeros(1, 2, 3)})
        expected = network.to_tokens(network.embed(latent))
        assert torch.allclose(network(prepared, torch.tensor([500.0])), expected)


def test_offloading_changes_no_digit(root, upscaler):
    offloaded = load(root, offload="sequential")
    sr = offloaded.upscale(picture(), ONE_STEP).sr_image
    assert np.array_equal(sr, upscaler.upscale(picture(), ONE_STEP).sr_image)


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("xinntao/Real-ESRGAN", "m3esr models pull coarse"),
        (SOURCES["vqgan"].folder, "m3esr models pull vqgan"),
        (SOURCES["depth-anything"].folder, "m3esr models pull depth-anything"),
    ],
)
def test_what_the_fusion_needs_is_told_when_it_is_missing(root, tmp_path, gone, reason):
    shutil.copytree(root, tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub" / gone)
    with pytest.raises(MissingWeightsError, match=reason):
        load(tmp_path / "hub")


def test_a_broken_file_is_told(root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    (tmp_path / "hub" / fusion_file(SEESR)).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(tmp_path / "hub")


def test_router_and_experts_must_know_the_same_modalities():
    with pytest.raises(ValueError, match="other modalities"):
        ImageTokenConfig(router=RouterConfig(modalities=("edge",)))
