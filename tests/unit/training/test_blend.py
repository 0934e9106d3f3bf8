"""Between two networks: the ends are the networks themselves, and what does not belong together is refused."""

import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.routing.coarse import CoarseConfig, CoarseNetwork
from training.blend import blend, main

CONFIG = CoarseConfig(widths=(4, 6), num_blocks=(1, 1))


def test_the_ends_are_the_networks_and_the_middle_is_between():
    faithful, sharp = {"a": torch.zeros(3)}, {"a": torch.tensor([1.0, 2.0, -4.0])}
    assert torch.equal(blend(faithful, sharp, 0)["a"], faithful["a"])
    assert torch.equal(blend(faithful, sharp, 1)["a"], sharp["a"])
    assert torch.equal(blend(faithful, sharp, 0.25)["a"], torch.tensor([0.25, 0.5, -1.0]))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_is_refused(share: float):
    with pytest.raises(ValueError, match="must lie"):
        blend({}, {}, share)


def test_two_different_networks_are_refused():
    with pytest.raises(ValueError, match="not of one network"):
        blend({"a": torch.zeros(3)}, {"a": torch.zeros(4)}, 0.5)


def test_the_command_writes_a_coarse_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("faithful", "sharp"):
        save_checkpoint(tmp_path / f"{name}.safetensors", CoarseNetwork(CONFIG).state_dict(), CONFIG)
    options = [f"--{name}={tmp_path / name}.safetensors" for name in ("faithful", "sharp", "out")]
    monkeypatch.setattr(sys, "argv", ["blend", *options, "--share", "0.5"])
    main()
    assert read_config(tmp_path / "out.safetensors", CoarseConfig) == CONFIG
    written = read_tensors(tmp_path / "out.safetensors")["head.weight"]
    ends = [read_tensors(tmp_path / f"{name}.safetensors")["head.weight"] for name in ("faithful", "sharp")]
    torch.testing.assert_close(written, (ends[0] + ends[1]) / 2)
