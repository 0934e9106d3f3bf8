"""Another coarse network in a profile."""

import pytest
import torch

from models.checkpoint import read_tensors, save_checkpoint
from models.pipeline import Upscaler
from models.routing.coarse import CoarseConfig, CoarseNetwork
from tests.unit.models.tiny import tiny_upscaler
from training.graft import graft

WIDER = CoarseConfig(widths=(10, 12), num_blocks=(1, 1))


def test_the_profile_has_the_coarse_network_and_all_else_as_it_was(tmp_path):
    before = tiny_upscaler()
    save_checkpoint(tmp_path / "compact.safetensors", before.network.state_dict(), before.network.config)
    before.tokenizer.save(str(tmp_path / "tokenizer.json"))
    torch.manual_seed(1)
    coarse = CoarseNetwork(WIDER)
    save_checkpoint(tmp_path / "coarse.safetensors", coarse.state_dict(), WIDER)
    graft(tmp_path / "coarse.safetensors", tmp_path, tmp_path / "out")
    after = Upscaler.load("compact", checkpoint=tmp_path / "out")
    assert after.network.config.coarse == WIDER
    for name, tensor in after.network.state_dict().items():
        part = coarse.state_dict()[name.removeprefix("coarse.")] if name.startswith("coarse.") else None
        expected = before.network.state_dict()[name] if part is None else part
        assert torch.allclose(tensor, expected, atol=2e-3, rtol=2e-3), name


def test_what_is_no_coarse_network_is_refused(tmp_path):
    upscaler = tiny_upscaler()
    save_checkpoint(tmp_path / "compact.safetensors", upscaler.network.state_dict(), upscaler.network.config)
    with pytest.raises((TypeError, ValueError)):
        graft(tmp_path / "compact.safetensors", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_of_the_profile_are_not_lost(tmp_path):
    upscaler = tiny_upscaler()
    save_checkpoint(tmp_path / "compact.safetensors", upscaler.network.state_dict(), upscaler.network.config)
    upscaler.tokenizer.save(str(tmp_path / "tokenizer.json"))
    same = upscaler.network.coarse
    save_checkpoint(tmp_path / "coarse.safetensors", same.state_dict(), same.config)
    graft(tmp_path / "coarse.safetensors", tmp_path, tmp_path)
    assert set(read_tensors(tmp_path / "compact.safetensors")) == set(upscaler.network.state_dict())
