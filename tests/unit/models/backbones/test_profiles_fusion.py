"""Our fusion beside both public backbones: absent without weights, and what it tells and needs with them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.catalogue import MissingWeightsError
from models.fusion.image_tokens import ImageTokenConfig
from models.fusion.joint import JointFusionConfig
from models.fusion.tiled import FusedTokens
from models.requests import UpscaleOptions
from models.routing.router import RouterConfig
from models.sources import SOURCES
from tests.unit.models.backbones.hubs import NAMES, ONE_STEP, copy_without, load, picture, save_fused

ALL = dict.fromkeys((*NAMES, "text"), 1.0)


@pytest.fixture(scope="module")
def root(profile, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_fused(root, profile)
    return root


@pytest.fixture(scope="module")
def plain(root, profile, tmp_path_factory):
    """The backbone without our weights, working at the same size."""
    upscaler = load(copy_without(root, tmp_path_factory.mktemp("plain") / "hub", "m3esr"), profile)
    assert upscaler.fusion is None
    upscaler.multiple = 16
    return upscaler


def test_weights_and_temperatures_of_every_modality_are_told(upscaler, plain):
    options = UpscaleOptions(num_steps=3, modalities=ALL)
    result = upscaler.upscale(picture(), options)
    assert result.fusion == "trained" and upscaler.describe()["fusion"] == "trained"
    assert list(result.maps) == ["uncertainty", *NAMES]
    for name in NAMES:
        assert result.maps[name].shape == result.maps["uncertainty"].shape == (4, 6)  # 64 x 96 px, 16 px each
        assert result.maps[name].min() >= 0 and result.maps[name].max() <= 1
    expected = [timestep / 1000 for timestep in upscaler.timesteps(3)]
    assert result.temperatures["sigma"] == pytest.approx(expected) and expected == sorted(expected, reverse=True)
    assert all(len(result.temperatures[name]) == 3 and min(result.temperatures[name]) > 0 for name in NAMES)
    assert not np.array_equal(result.sr_image, plain.upscale(picture(), options).sr_image)


def test_with_every_modality_off_it_is_the_backbone_to_the_last_digit(upscaler, plain):
    off = replace(ONE_STEP, modalities={"text": 1.0})
    result = upscaler.upscale(picture(), off)
    assert np.array_equal(result.sr_image, plain.upscale(picture(), off).sr_image)
    assert (list(result.maps), result.temperatures) == (["uncertainty"], {})


def test_only_what_is_asked_for_is_fused_and_its_strength_counts(upscaler):
    one = upscaler.upscale(picture(), replace(ONE_STEP, modalities={"edge": 1.0}))
    assert list(one.maps) == ["uncertainty", "edge"] and set(one.temperatures) == {"sigma", "edge"}
    stronger = upscaler.upscale(picture(), replace(ONE_STEP, modalities={"edge": 2.0}))
    assert np.array_equal(stronger.maps["edge"], one.maps["edge"])
    assert not np.array_equal(stronger.sr_image, one.sr_image)


@torch.no_grad()
def test_a_tile_reads_the_maps_of_its_own_place_and_time(profile, upscaler):
    channels, width = {"quality": (16, 16), "fidelity": (4, 512)}[profile]
    network = upscaler.fusion.network
    latent, edges, weights = torch.randn(1, channels, 16, 20), torch.randn(1, 4, 8, 10), torch.rand(1, 8, 10)
    whole = FusedTokens(network, latent, {"edge": edges}, {"edge": weights})
    cut = FusedTokens(
        network, latent[..., 4:12, 6:14], {"edge": edges[..., 2:6, 3:7]}, {"edge": weights[..., 2:6, 3:7]}
    )
    middle = whole(slice(4, 12), slice(6, 14), 500)
    assert middle.shape == (1, 16, width)
    assert torch.equal(middle, cut(slice(0, 8), slice(0, 8), 500))
    assert not torch.equal(middle, whole(slice(4, 12), slice(6, 14), 20))  # temperatures follow the timestep


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_changes_no_digit(root, profile, upscaler, offload):
    options = replace(ONE_STEP, modalities=ALL)
    sr = load(root, profile, offload=offload).upscale(picture(), options).sr_image
    assert np.array_equal(sr, upscaler.upscale(picture(), options).sr_image)


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("xinntao/Real-ESRGAN", "m3esr models pull coarse"),
        (SOURCES["vqgan"].folder, "m3esr models pull vqgan"),
        (SOURCES["mask2former"].folder, "m3esr models pull mask2former"),
        (SOURCES["depth-anything"].folder, "m3esr models pull depth-anything"),
    ],
)
def test_what_the_fusion_needs_is_told_when_it_is_missing(root, profile, tmp_path, gone, reason):
    with pytest.raises(MissingWeightsError, match=reason):
        load(copy_without(root, tmp_path / "hub", gone), profile)


def test_a_broken_file_is_told(root, profile, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    next((tmp_path / "hub" / "m3esr").rglob("*.safetensors")).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(tmp_path / "hub", profile)


@pytest.mark.parametrize("config", [JointFusionConfig, ImageTokenConfig])
def test_router_and_experts_must_know_the_same_modalities(config):
    with pytest.raises(ValueError, match="other modalities"):
        config(router=RouterConfig(modalities=("edge",)))
