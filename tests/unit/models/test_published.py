"""The published one-pass super-resolvers: official numbers, official files, and what is said when one does not fit."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.routing.published import (
    PUBLISHED,
    SuperResolver,
    interpolate_states,
    load_super_resolver,
    published_path,
)
from models.routing.realesrgan import SRVGGNetCompact, SRVGGNetCompactConfig, build_from_state
from tests.unit.models.test_realesrgan import RRDB_FIXTURES, tiny_rrdb

OLD_NAMES = {
    "conv_body": "trunk_conv",
    "body.": "RRDB_trunk.",
    "rdb": "RDB",
    "conv_up1": "upconv1",
    "conv_up2": "upconv2",
    "conv_hr": "HRconv",
}


def old_style(state):
    """The state dict under the names that BSRGAN's file has."""
    for new, old in OLD_NAMES.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    return state


def tiny_srvgg(seed: int) -> SRVGGNetCompact:
    torch.manual_seed(seed)
    return SRVGGNetCompact(SRVGGNetCompactConfig(num_feat=4, num_conv=1))


@pytest.mark.parametrize(("tile", "pre_pad"), [(0, 0), (16, 10)])
def test_the_answer_equals_real_esrganer(tile, pre_pad):
    official = load_file(RRDB_FIXTURES / "tiling.safetensors")
    network = build_from_state(load_file(RRDB_FIXTURES / "weights.safetensors"))
    lr_image = official["image_bgr_u8"].flip(-1).permute(2, 0, 1)[None].float() / 255
    sr_image = SuperResolver(network, tile=tile, pre_pad=pre_pad)(lr_image)
    levels = (sr_image * 255).round()[0].permute(1, 2, 0).flip(-1).int()
    difference = (levels - official[f"out_bgr_u8_tile{tile}_prepad{pre_pad}"].int()).abs()
    assert difference.max() <= 1  # a value half-way between two levels may round either way
    assert difference.ne(0).float().mean() < 1e-3


@pytest.mark.parametrize("scale", [2, 4])
def test_tiles_with_enough_context_change_nothing(scale):
    network = tiny_rrdb(scale).eval()
    lr_image = torch.rand(1, 3, 37, 45)
    whole = SuperResolver(network)(lr_image)
    assert whole.shape == (1, 3, 37 * scale, 45 * scale)
    assert torch.allclose(SuperResolver(network, tile=8, tile_pad=40)(lr_image), whole, atol=1e-6)
    assert whole.min() >= 0 and whole.max() <= 1


def test_an_image_smaller_than_its_mirror_is_taken():
    assert SuperResolver(tiny_rrdb(4), pre_pad=10)(torch.rand(1, 3, 1, 2)).shape == (1, 3, 4, 8)


def test_a_tile_that_splits_a_block_of_x2_is_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        SuperResolver(tiny_rrdb(2), tile=15)
    with pytest.raises(ValueError, match="negative"):
        SuperResolver(tiny_rrdb(4), tile=-1)


def test_bsrgans_file_is_loaded_under_its_old_names(tmp_path):
    expected = tiny_rrdb(4)
    old = old_style(expected.state_dict())
    assert {"RRDB_trunk.0.RDB3.conv5.bias", "trunk_conv.weight", "upconv2.bias", "HRconv.weight"} < old.keys()
    torch.save(old, tmp_path / "BSRGAN.pth")
    loaded = load_super_resolver(tmp_path / "BSRGAN.pth").network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in expected.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_denoise_strength_mixes_the_two_files(tmp_path, suffix):
    strong, weak = tiny_srvgg(0).state_dict(), tiny_srvgg(1).state_dict()
    for name, state in (("realesr-general-x4v3", strong), ("realesr-general-wdn-x4v3", weak)):
        if suffix == ".pth":
            torch.save({"params": state}, tmp_path / (name + suffix))
        else:
            save_file(state, tmp_path / (name + suffix))
    path = tmp_path / ("realesr-general-x4v3" + suffix)
    key = "body.0.weight"
    for strength, expected in ((1.0, strong[key]), (0.0, weak[key]), (0.25, 0.25 * strong[key] + 0.75 * weak[key])):
        mixed = load_super_resolver(path, denoise_strength=strength).network.state_dict()
        torch.testing.assert_close(mixed[key], expected)
    assert torch.equal(load_super_resolver(path).network.state_dict()[key], strong[key])


def test_a_denoise_strength_that_cannot_be_had_is_refused(tmp_path):
    torch.save({"params": tiny_srvgg(0).state_dict()}, tmp_path / "realesr-general-x4v3.pth")
    with pytest.raises(ValueError, match=r"realesr-general-wdn-x4v3\.pth is missing"):
        load_super_resolver(tmp_path / "realesr-general-x4v3.pth", denoise_strength=0.5)
    with pytest.raises(ValueError, match="outside"):
        load_super_resolver(tmp_path / "realesr-general-x4v3.pth", denoise_strength=1.5)
    with pytest.raises(ValueError, match="has no denoise_strength"):
        load_super_resolver(tmp_path / "RealESRGAN_x4plus.pth", denoise_strength=0.5)
    with pytest.raises(ValueError, match="different networks"):
        interpolate_states(tiny_srvgg(0).state_dict(), tiny_rrdb(4).state_dict(), 0.5)


class Danger:
    def __reduce__(self):
        return (print, ("a checkpoint has run code",))


def test_a_file_that_is_no_checkpoint_is_refused_and_never_run(tmp_path, capsys):
    files = {
        "text.pth": b"<html>not found</html>",
        "empty.pth": b"",
        "code.pth": pickle.dumps(Danger()),
        "text.safetensors": b"<html>not found</html>",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read as weights"):
            load_super_resolver(tmp_path / name)
    assert capsys.readouterr().out == ""
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        load_super_resolver(tmp_path / "list.pth")
    torch.save({"encoder.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: these weights are neither"):
        load_super_resolver(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"gone\.pth is missing"):
        load_super_resolver(tmp_path / "gone.pth")


def test_published_names_lead_to_files(tmp_path):
    assert published_path(tmp_path, "bsrgan") == tmp_path / "cszn" / "BSRGAN" / "BSRGAN.pth"
    with pytest.raises(ValueError, match="known: " + ", ".join(PUBLISHED)):
        published_path(tmp_path, "swinir")
