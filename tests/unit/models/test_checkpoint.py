"""A checkpoint carries its own configuration."""

import pytest
import torch

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.configs import M3ESRConfig
from models.routing.coarse import CoarseConfig
from tests.unit.models.tiny import tiny_config, tiny_network


def test_a_network_is_rebuilt_from_its_file_alone(tmp_path):
    network = tiny_network()
    save_checkpoint(tmp_path / "n.safetensors", network.state_dict(), network.config)
    assert read_config(tmp_path / "n.safetensors", M3ESRConfig) == tiny_config()
    for name, tensor in read_tensors(tmp_path / "n.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_half_precision_on_disk_is_float32_in_memory(tmp_path):
    save_checkpoint(tmp_path / "h.safetensors", {"x": torch.rand(3)}, CoarseConfig(), torch.float16)
    assert read_tensors(tmp_path / "h.safetensors")["x"].dtype == torch.float32


def test_a_file_that_is_no_checkpoint_is_refused_with_advice(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_config(path, CoarseConfig)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", {"x": torch.rand(3)}, tiny_config())
    with pytest.raises(ValueError, match="CoarseConfig has no field"):
        read_config(tmp_path / "m.safetensors", CoarseConfig)
