"""Our fusion beside DiT4SR: a token group that is absent without weights, and of the right place and time with them."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from models.backbones.dit4sr import fused_names, load_denoiser
from models.backbones.fusion_files import fusion_file, load_fusion, save_fusion
from models.backbones.memory import Placement
from models.checkpoint import read_tensors, save_checkpoint
from models.fusion.joint import JointFusion, JointFusionConfig
from models.fusion.tiled import FusedTokens
from tests.unit.models.backbones import hubs
from tests.unit.models.backbones.hubs import NAMES, ONE_STEP, picture, save_fused
from tests.unit.models.published_tiny import FUSION

load = partial(hubs.load, profile="quality")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_fused(root, "quality")
    return root


@pytest.fixture(scope="module")
def upscaler(root):
    return load(root)


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
    upscaler.sampling = replace(upscaler.sampling, process_side=528)  # 66 latent cells: two by two tiles
    result = upscaler.upscale(picture(16, 16), replace(ONE_STEP, modalities=dict.fromkeys((*NAMES, "text"), 1.0)))
    assert result.maps["depth"].shape == (33, 33)


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
    with pytest.raises(ValueError, match="width 1536, the denoiser 16"):
        JointFusion(JointFusionConfig(), load_denoiser(root))
