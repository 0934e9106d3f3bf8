"""Another coarse or detail network in a profile."""

from dataclasses import replace

import pytest
import torch

from models.checkpoint import read_tensors, save_checkpoint
from models.network import GUIDES
from models.pipeline import Upscaler
from models.routing.coarse import CoarseConfig, CoarseNetwork
from tests.unit.models.tiny import tiny_upscaler
from training.graft import graft

WIDER = CoarseConfig(widths=(10, 12), num_blocks=(1, 1))
TOLD = CoarseConfig(widths=(8, 10, 12), num_blocks=(1, 1, 1), num_guides=GUIDES, token_width=16)


@pytest.mark.parametrize("part", ["coarse", "detail"])
def test_the_profile_has_the_new_network_and_all_else_as_it_was(tmp_path, part):
    before = tiny_upscaler(detail=TOLD)
    save_checkpoint(tmp_path / "compact.safetensors", before.network.state_dict(), before.network.config)
    before.tokenizer.save(str(tmp_path / "tokenizer.json"))
    torch.manual_seed(1)
    config = WIDER if part == "coarse" else replace(TOLD, widths=(10, 12, 14))
    new = CoarseNetwork(config)
    save_checkpoint(tmp_path / "new.safetensors", new.state_dict(), config)
    graft({part: tmp_path / "new.safetensors"}, tmp_path, tmp_path / "out")
    after = Upscaler.load("compact", checkpoint=tmp_path / "out")
    assert getattr(after.network.config, part) == config
    for name, tensor in after.network.state_dict().items():
        is_new = name.startswith(f"{part}.")
        expected = new.state_dict()[name.removeprefix(f"{part}.")] if is_new else before.network.state_dict()[name]
        assert torch.allclose(tensor, expected, atol=2e-3, rtol=2e-3), name


def test_what_is_no_coarse_network_is_refused(tmp_path):
    upscaler = tiny_upscaler()
    save_checkpoint(tmp_path / "compact.safetensors", upscaler.network.state_dict(), upscaler.network.config)
    with pytest.raises((TypeError, ValueError)):
        graft({"coarse": tmp_path / "compact.safetensors"}, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_of_the_profile_are_not_lost(tmp_path):
    upscaler = tiny_upscaler()
    save_checkpoint(tmp_path / "compact.safetensors", upscaler.network.state_dict(), upscaler.network.config)
    upscaler.tokenizer.save(str(tmp_path / "tokenizer.json"))
    same = upscaler.network.coarse
    save_checkpoint(tmp_path / "coarse.safetensors", same.state_dict(), same.config)
    graft({"coarse": tmp_path / "coarse.safetensors"}, tmp_path, tmp_path)
    assert set(read_tensors(tmp_path / "compact.safetensors")) == set(upscaler.network.state_dict())
