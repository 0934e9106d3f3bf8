"""A widened coarse network is the same function with room to grow."""

import sys

import pytest
import torch

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.routing.coarse import CoarseConfig, CoarseNetwork
from training.widening import main, widen

OLD = CoarseConfig(widths=(4, 6), num_blocks=(1, 1))
NEW = CoarseConfig(widths=(6, 10), num_blocks=(2, 2))


def trained() -> CoarseNetwork:
    torch.manual_seed(0)
    network = CoarseNetwork(OLD)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    return network


def test_it_gives_the_same_image():
    network, lr_image = trained(), torch.rand(1, 3, 12, 9)
    wide = widen(network.state_dict(), OLD, NEW)
    assert wide.config == NEW
    with torch.inference_mode():
        assert torch.allclose(wide(lr_image), network(lr_image), atol=1e-5)
        assert (network(lr_image) - CoarseNetwork(OLD)(lr_image)).abs().max() > 0.1  # the trained part does something


def test_what_was_added_can_learn():
    wide = widen(trained().state_dict(), OLD, NEW)
    wide(torch.rand(1, 3, 12, 12)).square().mean().backward()
    assert float(wide.tail.weight.grad[:, OLD.widths[0] :].abs().sum()) > 0


@pytest.mark.parametrize("smaller", [CoarseConfig(widths=(3, 10), num_blocks=(2, 2)), CoarseConfig(widths=(6, 10, 12))])
def test_a_network_that_does_not_contain_the_old_one_is_refused(smaller):
    with pytest.raises(ValueError, match="more channels or blocks"):
        widen(trained().state_dict(), OLD, smaller)


def test_the_command_writes_the_wider_network(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "old.safetensors", trained().state_dict(), OLD)
    sizes = ["--widths", *map(str, NEW.widths), "--num-blocks", *map(str, NEW.num_blocks)]
    files = [f"--init={tmp_path}/old.safetensors", f"--out={tmp_path}/new.safetensors"]
    monkeypatch.setattr(sys, "argv", ["widening", *files, *sizes])
    main()
    wide, lr_image = CoarseNetwork(read_config(tmp_path / "new.safetensors", CoarseConfig)), torch.rand(1, 3, 8, 8)
    wide.load_state_dict(read_tensors(tmp_path / "new.safetensors"))
    with torch.inference_mode():
        assert wide.config == NEW and torch.allclose(wide(lr_image), trained()(lr_image), atol=1e-5)
