"""Between two networks: the ends are the networks themselves, and what does not belong together is refused."""

import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.network import M3ESR
from models.routing.coarse import CoarseConfig, CoarseNetwork
from tests.unit.models.tiny import tiny_upscaler
from training.blend import blend, main

CONFIG = CoarseConfig(widths=(4, 6), num_blocks=(1, 1))


def test_the_ends_are_the_networks_and_the_middle_is_between():
    first, second = {"a": torch.zeros(3)}, {"a": torch.tensor([1.0, 2.0, -4.0])}
    assert torch.equal(blend(first, second, 0)["a"], first["a"])
    assert torch.equal(blend(first, second, 1)["a"], second["a"])
    assert torch.equal(blend(first, second, 0.25)["a"], torch.tensor([0.25, 0.5, -1.0]))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_is_refused(share: float):
    with pytest.raises(ValueError, match="must lie"):
        blend({}, {}, share)


def test_two_different_networks_are_refused():
    with pytest.raises(ValueError, match="not of one network"):
        blend({"a": torch.zeros(3)}, {"a": torch.zeros(4)}, 0.5)


@pytest.mark.parametrize("kind", ["coarse", "profile"])
def test_the_command_writes_a_checkpoint_of_the_kind_it_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = CONFIG if kind == "coarse" else tiny_upscaler().network.config
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        network = CoarseNetwork(CONFIG) if kind == "coarse" else M3ESR(config)
        save_checkpoint(tmp_path / f"{name}.safetensors", network.state_dict(), config)
    options = [f"--{name}={tmp_path / name}.safetensors" for name in ("first", "second", "out")]
    monkeypatch.setattr(sys, "argv", ["blend", *options, "--share", "0.5"])
    main()
    assert read_config(tmp_path / "out.safetensors", type(config)) == config
    first, second, out = (read_tensors(tmp_path / f"{name}.safetensors") for name in ("first", "second", "out"))
    for name, tensor in out.items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=2e-3, rtol=1e-3), name
