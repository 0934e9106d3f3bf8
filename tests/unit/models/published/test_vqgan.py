"""The VQGAN encoder: the original checkpoint's keys, converted, give what the original network gives."""

import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F

from models.catalogue import MissingWeightsError
from models.checkpoint import read_foreign
from models.modalities.published import VqganEncoder
from tests.unit.models.published import tiny

CHANNELS = (32, 32, 64)  # two halvings; attention at the last resolution, as f16 has it
LATENT, NUM_CODES = 16, 24


def original_state(seed=0):
    """Random weights under the names of the original checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, inputs, outputs, side):
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) / inputs**0.5 / side
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)

    def norm(name, width):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    def block(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs, 3)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    conv("encoder.conv_in", 3, CHANNELS[0], 3)
    width = CHANNELS[0]
    for i, outputs in enumerate(CHANNELS):
        for j in range(2):
            block(f"encoder.down.{i}.block.{j}", width, outputs)
            width = outputs
            if i == len(CHANNELS) - 1:
                attention(f"encoder.down.{i}.attn.{j}", width)
        if i < len(CHANNELS) - 1:
            conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    block("encoder.mid.block_1", width, width)
    attention("encoder.mid.attn_1", width)
    block("encoder.mid.block_2", width, width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", width, LATENT, 3)
    conv("quant_conv", LATENT, LATENT, 1)
    state["quantize.embedding.weight"] = torch.randn(NUM_CODES, LATENT, generator=generator)
    conv("decoder.conv_in", LATENT, width, 3)  # left out by the conversion
    conv("loss.discriminator.main.0", 3, 8, 3)
    return state


def original_encode(state, image):
    """The encoder of Esser et al. 2021 from its description, in plain operations. image: (B, 3, H, W) in [-1, 1]."""

    def conv(name, x, padding=1, stride=1):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    def norm(name, x):
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def block(name, x):
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)))
        h = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)))
        return h + (conv(f"{name}.nin_shortcut", x, 0) if f"{name}.nin_shortcut.weight" in state else x)

    def attention(name, x):
        h = norm(f"{name}.norm", x)
        q, k, v = (conv(f"{name}.{part}", h, 0).flatten(2) for part in "qkv")  # (B, C, N) each
        share = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)  # over the keys
        return x + conv(f"{name}.proj_out", (v @ share.transpose(1, 2)).view_as(x), 0)

    h = conv("encoder.conv_in", image)
    for i in range(len(CHANNELS)):
        for j in range(2):
            h = block(f"encoder.down.{i}.block.{j}", h)
            if i == len(CHANNELS) - 1:
                h = attention(f"encoder.down.{i}.attn.{j}", h)
        if i < len(CHANNELS) - 1:  # padded right and below only
            h = conv(f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), 0, 2)
    h = block("encoder.mid.block_2", attention("encoder.mid.attn_1", block("encoder.mid.block_1", h)))
    return conv("quant_conv", conv("encoder.conv_out", F.silu(norm("encoder.norm_out", h))), 0)


class ModelCheckpoint:
    """Like the callbacks of a training framework that old checkpoints name, and are loaded without."""

    def __init__(self):
        self.best = 1.0


@pytest.fixture
def root(tmp_path):
    content = {"state_dict": OrderedDict(original_state()), "callbacks": {ModelCheckpoint: ModelCheckpoint()}}
    torch.save(content, tiny.folder(tmp_path, "vqgan") / "last.ckpt")
    return tmp_path


def test_the_converted_checkpoint_equals_the_original_network(root):
    seen = torch.cat([tiny.image(48, 64, seed=1), tiny.image(48, 64, seed=2)])
    expected = original_encode(original_state(), 2 * seen - 1)
    found = VqganEncoder.load(root).encode(seen)
    assert found.shape == (2, LATENT, 12, 16)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4


def test_quantised_latents_are_the_nearest_codes(root):
    seen = tiny.image(16, 16)
    codes = original_state()["quantize.embedding.weight"]
    before = original_encode(original_state(), 2 * seen - 1)[0].flatten(1).T
    nearest = codes[torch.cdist(before, codes).argmin(1)]
    found = VqganEncoder.load(root, is_quantised=True).encode(seen)[0].flatten(1).T
    assert torch.allclose(found, nearest, atol=1e-5)


def test_a_folder_of_diffusers_does_as_well(root, tmp_path_factory):
    from diffusers import VQModel

    torch.manual_seed(0)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        latent_channels=8,
    )
    other = tmp_path_factory.mktemp("other")
    model.save_pretrained(tiny.folder(other, "vqgan"))
    seen = tiny.image(16, 16)
    with torch.inference_mode():
        expected = model.encode(2 * seen - 1).latents
    assert torch.allclose(VqganEncoder.load(other).to("cpu").encode(seen), expected, atol=1e-5)


def test_what_does_not_fit_is_said(root, tmp_path):
    with pytest.raises(ValueError, match="multiples of 4"):
        VqganEncoder.load(root).encode(tiny.image(18, 16))
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tiny.folder(tmp_path, "vqgan") / "last.ckpt")
    with pytest.raises(ValueError, match="no VQGAN encoder"):
        VqganEncoder.load(tmp_path)
    state = original_state()
    del state["encoder.mid.attn_1.q.weight"]
    torch.save({"state_dict": state}, tiny.folder(tmp_path, "vqgan") / "last.ckpt")
    with pytest.raises(ValueError, match=r"lacks encoder\.mid_block"):
        VqganEncoder.load(tmp_path)


def test_missing_weights_name_the_command(tmp_path):
    with pytest.raises(MissingWeightsError, match="m3esr models pull vqgan"):
        VqganEncoder.load(tmp_path)


class Harm:
    """Runs a command when it is unpickled by something that trusts the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_pickle_runs(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "harm": Harm(tmp_path / "harm")}, tmp_path / "x.ckpt")
    assert read_foreign(tmp_path / "x.ckpt", objects="drop")["state_dict"]["a"].tolist() == [1, 1]
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(ValueError, match=r"old\.ckpt"):
        read_foreign(tmp_path / "old.ckpt", objects="drop")
    with pytest.raises(ValueError, match=r"x\.ckpt cannot be read as weights"):
        read_foreign(tmp_path / "x.ckpt")
    assert not (tmp_path / "harm").exists()


def test_half_and_old_files_and_files_without_weights(tmp_path):
    torch.save({"params": {"a": torch.ones(2).half()}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_foreign(tmp_path / "old.pth", objects="drop")["params"]["a"].dtype == torch.float16
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_foreign(tmp_path / "text.pth", objects="drop")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not weights by name"):
        read_foreign(tmp_path / "list.pth", objects="drop")
