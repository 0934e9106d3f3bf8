"""Loading DiT4SR from the hub's layout: variants, mixed precision, dead weights, files that do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbones.dit4sr import load_denoiser
from tests.unit.models.published_tiny import POOLED, TEXT_FEATURES, save_denoiser

PLACE = "acceptee/DiT4SR/dit4sr_r1/transformer"


def inputs(height=10, width=6):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    latents = draw(2, 16, height, width), draw(2, 16, height, width)
    return [*latents, draw(2, 5, TEXT_FEATURES), draw(2, POOLED), torch.tensor([900.0, 30.5])]


@pytest.mark.parametrize(("weights", "variant"), [("dit4sr_q", "orig"), ("dit4sr_f", "orig"), ("dit4sr_r1", "r1")])
def test_the_folder_tells_the_variant_and_the_network_is_the_saved_one(tmp_path, weights, variant):
    saved = save_denoiser(tmp_path, weights)
    loaded = load_denoiser(tmp_path, weights)
    assert loaded.config.variant == variant and not loaded.config.fused
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs()), saved(*inputs()), atol=2e-2, rtol=2e-2)  # float16 in between
        assert loaded(*inputs(9, 13)).shape == (2, 16, 9, 13)


def test_every_tensor_is_the_files_and_dead_ones_are_left_out(tmp_path):
    save_denoiser(tmp_path, "dit4sr_q")
    stored = load_file(tmp_path / PLACE.replace("r1", "q") / "diffusion_pytorch_model.safetensors")
    whole = load_denoiser(tmp_path, "dit4sr_q", drop_dead=False).state_dict()
    assert whole.keys() == stored.keys()
    assert all(torch.equal(whole[name], value.float()) for name, value in stored.items())
    spare = load_denoiser(tmp_path, "dit4sr_q")
    left_out = stored.keys() - spare.state_dict().keys()
    assert "transformer_blocks.1.attn.to_k_control.weight" in left_out
    assert "transformer_blocks.0.attn2.add_v_proj.bias" in left_out
    assert spare.pos_embed.max_size == 64
    with torch.no_grad():
        full = load_denoiser(tmp_path, "dit4sr_q", drop_dead=False)
        assert torch.equal(spare(*inputs()), full(*inputs()))


def test_a_precision_can_be_asked_for(tmp_path):
    save_denoiser(tmp_path)
    loaded = load_denoiser(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}


def change_file(tmp_path, change):
    save_denoiser(tmp_path)
    path = tmp_path / PLACE / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("proj_out.bias"), r"proj_out.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), r"extra is unknown"),
        (lambda state: state.update({"proj_out.bias": torch.zeros(3)}), r"proj_out.bias \(3,\) instead of \(64,\)"),
    ],
)
def test_keys_that_do_not_fit_are_told(tmp_path, change, reason):
    change_file(tmp_path, change)
    with pytest.raises(ValueError, match=reason):
        load_denoiser(tmp_path)


def test_files_that_are_broken_or_absent_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"config.json is missing"):
        load_denoiser(tmp_path)
    save_denoiser(tmp_path)
    path = tmp_path / PLACE / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_denoiser(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"safetensors is missing"):
        load_denoiser(tmp_path)
    (tmp_path / PLACE / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load_denoiser(tmp_path)
    (tmp_path / PLACE / "config.json").write_text(json.dumps({"sample_size": 3}))
    with pytest.raises(ValueError, match=r"not the config.json of DiT4SR"):
        load_denoiser(tmp_path)


def test_unknown_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dit4sr_x"):
        load_denoiser(tmp_path, "dit4sr_x")
