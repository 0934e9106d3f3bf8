"""PerceptionNet: shapes at every size, ranges, positions that follow the image, checkpoints."""

import json

import pytest
import torch
from safetensors import safe_open

from models.modalities.config import SEGMENT_NAMES, PerceptionConfig
from models.modalities.perception import PerceptionNet, load_perception, save_perception

TINY = PerceptionConfig(width=16, fine_width=8, num_blocks=1, num_heads=2, dino_channels=6, num_segments=5)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PerceptionNet(TINY).eval()


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 4), (20, 36), (64, 12)])
def test_any_size_that_is_a_multiple_of_four_gives_one_token_per_4x4_pixels(network, height, width):
    seen = network(torch.rand(2, 3, height, width))
    assert seen.dino.shape == (2, 6, height // 4, width // 4)
    assert seen.segmentation.shape == (2, 5, height // 2, width // 2)
    assert seen.depth.shape == (2, 1, height // 2, width // 2)


def test_other_sizes_are_refused_with_both_numbers(network):
    with pytest.raises(ValueError, match="18 x 20"):
        network(torch.rand(1, 3, 18, 20))


def test_depth_lies_in_the_unit_interval(network):
    depth = network(torch.rand(1, 3, 16, 16) * 100 - 50).depth
    assert depth.min() >= 0
    assert depth.max() <= 1


def test_same_image_same_bytes(network):
    lr_image = torch.rand(1, 3, 24, 16)
    first, second = network(lr_image), network(lr_image)
    assert torch.equal(first.dino, second.dino)
    assert torch.equal(first.segmentation, second.segmentation)
    assert torch.equal(first.depth, second.depth)


def test_images_of_a_batch_do_not_see_each_other(network):
    pair = torch.rand(2, 3, 16, 16)
    assert torch.allclose(network(pair).dino[:1], network(pair[:1]).dino, atol=1e-5)


def test_a_token_sees_the_whole_image(network):
    lr_image = torch.rand(1, 3, 64, 64)
    changed = lr_image.clone()
    changed[..., -4:, -4:] = 0
    # outside the reach of the convolutions
    assert not torch.equal(network(lr_image).dino[..., 0, 0], network(changed).dino[..., 0, 0])


def test_the_top_of_a_flat_image_is_not_taken_for_its_bottom(network):
    dino = network(torch.full((1, 3, 32, 32), 0.5)).dino
    assert not torch.allclose(dino[..., 0, :], dino[..., -1, :], atol=1e-3)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of num_heads 4"):
        PerceptionConfig(width=30)


def test_a_checkpoint_carries_its_config(network, tmp_path):
    path = tmp_path / "perception.safetensors"
    save_perception(network, path, {"step": "7"})
    with safe_open(path, framework="pt") as file:
        assert PerceptionConfig(**json.loads(file.metadata()["config"])) == TINY
        assert file.metadata()["step"] == "7"
    lr_image = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_perception(path)(lr_image).depth, network(lr_image).depth)
    assert list(tmp_path.iterdir()) == [path]


def test_every_class_of_the_default_network_has_a_name():
    assert PerceptionConfig().num_segments == len(SEGMENT_NAMES) == len(set(SEGMENT_NAMES))


def test_the_default_network_is_small():
    count = sum(p.numel() for p in PerceptionNet(PerceptionConfig()).parameters())
    assert 0.5e6 < count < 2.5e6
