"""Our denoiser returns what the official DiT4SR code returned for the same weights and inputs."""

import gzip
import json

import pytest
import torch

from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer
from tests.unit.models.denoising.published import (
    FIXTURES,
    published_config,
    published_inputs,
    published_network,
    tensors,
)

both_variants = pytest.mark.parametrize("variant", ["orig", "r1"])
both_cases = pytest.mark.parametrize("case", ["a", "c"])


@both_cases
@both_variants
def test_every_stream_equals_the_official_one(case, variant):
    streams = {}
    with torch.no_grad():
        streams["sample"] = published_network(case, variant=variant)(*published_inputs(case), record=streams)
    expected = tensors(case, f"outputs_{variant}")
    assert streams.keys() == expected.keys()
    for name, stream in expected.items():
        assert (streams[name] - stream).abs().max() < 1e-4, name


@both_cases
def test_recording_changes_no_digit(case):
    network, inputs = published_network(case), published_inputs(case)
    with torch.no_grad():
        assert torch.equal(network(*inputs), network(*inputs, record={}))


@both_cases
def test_state_dict_has_exactly_the_published_keys(case):
    lines = (FIXTURES / f"parity_{case}" / "keys.txt").read_text().splitlines()
    ours = DiffusionTransformer(published_config(case)).state_dict()
    assert sorted(f"{name} {tuple(value.shape)}" for name, value in ours.items()) == sorted(lines)


@both_cases
def test_position_table_is_the_published_one(case):
    ours = DiffusionTransformer(published_config(case)).pos_embed.pos_embed
    torch.testing.assert_close(ours, tensors(case, "weights")["pos_embed.pos_embed"], atol=1e-6, rtol=0)


@both_variants
def test_without_fused_tokens_the_fused_network_is_dit4sr_to_the_last_digit(variant):
    inputs = published_inputs("a")
    with torch.no_grad():
        plain = published_network("a", variant=variant)(*inputs)
        fused = published_network("a", variant=variant, fused=True)(*inputs)
    assert torch.equal(plain, fused)


def test_only_fused_keys_are_missing_from_published_weights():
    network = DiffusionTransformer(published_config("a", fused=True))
    loaded = network.load_state_dict(tensors("a", "weights"), strict=False)
    assert loaded.unexpected_keys == []
    assert len(loaded.missing_keys) > 0
    assert [key for key in loaded.missing_keys if "_fused." not in key] == []


@pytest.mark.parametrize("fused", [False, True])
def test_the_full_network_has_the_shapes_of_the_published_file(fused):
    published = json.loads(gzip.decompress((FIXTURES / "dit4sr_full" / "shapes.json.gz").read_bytes()))
    config = DenoiserConfig(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        fused=fused,
    )
    with torch.device("meta"):
        ours = DiffusionTransformer(config).state_dict()
    added = {name for name in ours if "_fused." in name}
    assert bool(added) == fused
    assert {name: list(value.shape) for name, value in ours.items() if name not in added} == published
