"""Real-ESRGAN's networks give the official numbers and load the official files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.routing.realesrgan import (
    RRDBNet,
    RRDBNetConfig,
    SRVGGNetCompact,
    SRVGGNetCompactConfig,
    build_from_state,
    load_realesrgan,
    select_state,
)

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RRDB_FIXTURES = FIXTURES / "rrdb"


@pytest.mark.parametrize("name", ["rrdb", "srvgg"])
def test_the_output_equals_the_official_network(name):
    network = build_from_state(load_file(FIXTURES / name / "weights.safetensors"))
    lr_image = load_file(FIXTURES / name / "inputs.safetensors")["x"]
    with torch.no_grad():
        difference = network(lr_image) - load_file(FIXTURES / name / "outputs.safetensors")["y"]
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["rrdb", "srvgg"])
def test_the_configuration_is_read_off_the_weights(name):
    official = json.loads((FIXTURES / name / "config.json").read_text())
    official.pop("act_type", None)
    config = build_from_state(load_file(FIXTURES / name / "weights.safetensors")).config
    assert config == (RRDBNetConfig if name == "rrdb" else SRVGGNetCompactConfig)(**official)


@pytest.mark.parametrize("network", [RRDBNet, SRVGGNetCompact])
def test_the_default_network_has_the_published_size(network):
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in network().parameters())
    assert num_parameters == {RRDBNet: 16_697_987, SRVGGNetCompact: 1_213_296}[network]


def tiny_rrdb(scale: int) -> RRDBNet:
    return RRDBNet(RRDBNetConfig(scale=scale, num_feat=4, num_block=1, num_grow_ch=2))


@pytest.mark.parametrize("scale", [4, 2, 1])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_any_size_is_enlarged_by_the_scale(scale, size):
    with torch.no_grad():
        sr_image = tiny_rrdb(scale)(torch.rand(1, 3, *size))
    assert sr_image.shape == (1, 3, size[0] * scale, size[1] * scale)


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_the_scale_is_recognised(scale):
    assert build_from_state(tiny_rrdb(scale).state_dict()).config.scale == scale


def test_a_checkpoint_gives_params_ema_first_then_params_then_itself():
    ema, plain = {"w": torch.ones(1)}, {"w": torch.zeros(1)}
    assert select_state({"params": plain, "params_ema": ema})["w"] == 1
    assert select_state({"params": plain, "step": 3})["w"] == 0
    assert select_state({"w": torch.ones(1), "step": 3}).keys() == {"w"}


def test_both_kinds_of_file_are_loaded(tmp_path):
    expected = SRVGGNetCompact(SRVGGNetCompactConfig(num_feat=4, num_conv=1, upscale=2))
    torch.save({"params": expected.state_dict()}, tmp_path / "net.pth")
    save_file(expected.state_dict(), tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        loaded = load_realesrgan(tmp_path / name)
        assert loaded.config == expected.config
        assert not loaded.training
        assert torch.equal(loaded.body[0].weight, expected.body[0].weight)


def test_foreign_weights_are_refused():
    with pytest.raises(ValueError, match="neither"):
        build_from_state({"encoder.weight": torch.ones(1)})
    broken = tiny_rrdb(4).state_dict()
    del broken["conv_hr.bias"]
    with pytest.raises(ValueError, match=r"conv_hr\.bias"):
        build_from_state(broken)
