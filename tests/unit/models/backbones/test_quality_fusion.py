"""Our fusion beside DiT4SR: a token group that is absent without weights, and of the right place and time with them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.backbones.dit4sr import fused_names, load_denoiser
from models.backbones.fusion_files import fusion_file, load_fusion, save_fusion
from models.backbones.memory import Placement
from models.catalogue import MissingWeightsError
from models.checkpoint import read_tensors, save_checkpoint
from models.fusion.joint import JointFusion, JointFusionConfig
from models.fusion.tiled import FusedTokens
from models.requests import UpscaleOptions
from models.routing.router import RouterConfig
from models.sources import SOURCES
from tests.unit.models.backbones.test_quality import ONE_STEP, SMALL, load, picture, save_coarse
from tests.unit.models.published import tiny
from tests.unit.models.published_tiny import FUSION, save_denoiser, save_joint_fusion, save_sd35
from tests.unit.models.seesr_tiny import save_vqgan

NAMES = ["segmentation", "depth", "edge", "dino"]
ALL = dict.fromkeys((*NAMES, "text"), 1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_denoiser(root)
    save_sd35(root)
    save_coarse(root)
    tiny.extractors(root)
    save_vqgan(root)
    save_joint_fusion(root)
    return root


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    """DiT4SR without our weights, working at the same size."""
    copy = tmp_path_factory.mktemp("plain") / "hub"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "m3esr")
    upscaler = load(copy)
    assert upscaler.fusion is None and not upscaler.denoiser.config.fused
    upscaler.multiple = 16
    return upscaler


def test_weights_and_temperatures_of_every_modality_are_told(upscaler, plain):
    options = UpscaleOptions(num_steps=3, modalities=ALL)
    result = upscaler.upscale(picture(), options)
    assert result.fusion == "trained" and upscaler.describe()["fusion"] == "trained"
    assert list(result.maps) == ["uncertainty", *NAMES]
    for name in NAMES:
        assert result.maps[name].shape == result.maps["uncertainty"].shape == (4, 6)
        assert result.maps[name].min() >= 0 and result.maps[name].max() <= 1
    assert result.temperatures["sigma"] == pytest.approx(upscaler.schedule.sigmas(3)[:-1].tolist())
    assert all(len(result.temperatures[name]) == 3 and min(result.temperatures[name]) > 0 for name in NAMES)
    assert not np.array_equal(result.sr_image, plain.upscale(picture(), options).sr_image)


def test_with_every_modality_off_it_is_dit4sr_to_the_last_digit(upscaler, plain):
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
def test_a_tile_reads_the_maps_of_its_own_place_and_time(upscaler):
    network = upscaler.fusion.network
    latent, edges, weights = torch.randn(1, 16, 16, 20), torch.randn(1, 4, 8, 10), torch.rand(1, 8, 10)
    whole = FusedTokens(network, latent, {"edge": edges}, {"edge": weights})
    cut = FusedTokens(
        network, latent[..., 4:12, 6:14], {"edge": edges[..., 2:6, 3:7]}, {"edge": weights[..., 2:6, 3:7]}
    )
    middle = whole(slice(4, 12), slice(6, 14), 500)
    assert middle.shape == (1, 16, 16)
    assert torch.equal(middle, cut(slice(0, 8), slice(0, 8), 500))
    assert not torch.equal(middle, whole(slice(4, 12), slice(6, 14), 20))


@torch.no_grad()
def test_projections_are_kept_over_the_steps_only_as_far_as_memory_goes(upscaler):
    latent, edges, weights = torch.randn(1, 16, 8, 16), torch.randn(1, 4, 4, 8), torch.rand(1, 4, 8)
    places = [(slice(0, 8), slice(0, 8)), (slice(0, 8), slice(8, 16))]

    def read(kept_bytes):
        tokens = FusedTokens(upscaler.fusion.network, latent, {"edge": edges}, {"edge": weights}, kept_bytes)
        return [tokens(*place, 300) for place in places * 2], len(tokens.prepared)

    one_tile = 4 * (16 * 16) * 4  # z, Q, K, V of 16 patches, 16 features each, float32
    (kept, num_kept), (fresh, num_fresh) = read(one_tile), read(0)
    assert (num_kept, num_fresh) == (1, 0)
    assert all(torch.equal(a, b) for a, b in zip(kept, fresh, strict=True))


def test_tiles_and_guidance_and_the_official_sampling_work_with_it(root):
    upscaler = load(root, official_sampling=True)
    upscaler.sampling = replace(SMALL, process_side=528)  # 66 latent cells: two by two tiles
    result = upscaler.upscale(picture(16, 16), replace(ONE_STEP, modalities=ALL))
    assert result.maps["depth"].shape == (33, 33)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_changes_no_digit(root, upscaler, offload):
    options = replace(ONE_STEP, modalities=ALL)
    sr = load(root, offload=offload).upscale(picture(), options).sr_image
    assert np.array_equal(sr, upscaler.upscale(picture(), options).sr_image)


def test_the_fused_group_starts_as_the_lr_group(root):
    denoiser = load_denoiser(root, fused=True)
    attention = denoiser.transformer_blocks[0].attn
    assert torch.equal(attention.to_v_fused.weight, attention.to_v_control.weight)
    assert {name.split(".")[-2] for name in fused_names(denoiser)} == {
        "to_q_fused",
        "to_k_fused",
        "to_v_fused",
        "to_out_fused",
    }


def test_a_saved_fusion_is_read_back_to_the_digit(root, tmp_path, upscaler):
    denoiser = load_denoiser(root, fused=True)
    placement = Placement("none", torch.device("cpu"))
    fusion = load_fusion(root, "dit4sr_r1", denoiser, torch.float32, placement, has_coarse=True)
    save_fusion(tmp_path / "fusion.safetensors", fusion.network)
    saved, read = read_tensors(root / fusion_file("dit4sr_r1")), read_tensors(tmp_path / "fusion.safetensors")
    assert saved.keys() == read.keys()
    assert all(torch.equal(value, read[name]) for name, value in saved.items())
    with pytest.raises(ValueError, match="merged"):
        save_fusion(tmp_path / "again.safetensors", upscaler.fusion.network)


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("xinntao/Real-ESRGAN", "m3esr models pull coarse"),
        (SOURCES["vqgan"].folder, "m3esr models pull vqgan"),
        (SOURCES["mask2former"].folder, "m3esr models pull mask2former"),
    ],
)
def test_what_the_fusion_needs_is_told_when_it_is_missing(root, tmp_path, gone, reason):
    shutil.copytree(root, tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub" / gone)
    with pytest.raises(MissingWeightsError, match=reason):
        load(tmp_path / "hub")


def spoil(root, tmp_path, config=FUSION, **changes):
    shutil.copytree(root, tmp_path / "hub")
    path = tmp_path / "hub" / fusion_file("dit4sr_r1")
    tensors = {name: value for name, value in (read_tensors(path) | changes).items() if value is not None}
    save_checkpoint(path, tensors, config)
    return tmp_path / "hub"


def test_weights_of_another_denoiser_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="trained beside dit4sr_q, not dit4sr_r1"):
        load(spoil(root, tmp_path, replace(FUSION, weights="dit4sr_q")))


def test_a_file_that_does_not_fit_is_told(root, tmp_path):
    name = "denoiser.transformer_blocks.0.attn.to_v_fused.bias"
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load(spoil(root, tmp_path, **{name: None}))


def test_configurations_that_cannot_work_are_refused(root):
    with pytest.raises(ValueError, match="other modalities"):
        JointFusionConfig(router=RouterConfig(modalities=("edge",)))
    with pytest.raises(ValueError, match="width 1536, the denoiser 16"):
        JointFusion(JointFusionConfig(), load_denoiser(root))
