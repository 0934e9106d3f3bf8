"""Stage 1: which network is trained, and from what."""

import pytest
import torch

from models.checkpoint import save_checkpoint
from models.routing.coarse import CoarseConfig, CoarseNetwork, upscale
from tests.unit.models.tiny import tiny_upscaler
from training.coarse import COARSE, DETAIL, FromBase, load_coarse, read_network, start

SMALL = CoarseConfig(widths=(4, 6, 8), num_blocks=(1, 1, 1))


def trained(seed: int, config: CoarseConfig = SMALL) -> CoarseNetwork:
    torch.manual_seed(seed)
    network = CoarseNetwork(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_the_detail_network_is_the_coarse_one_with_more_to_hear():
    assert (DETAIL.widths, DETAIL.scale) == (COARSE.widths, COARSE.scale)  # so it can start as it
    assert all(ours >= theirs for ours, theirs in zip(DETAIL.num_blocks, COARSE.num_blocks, strict=True))
    assert DETAIL.num_guides > 0 < DETAIL.token_width and not COARSE.num_guides


def test_only_the_detail_network_learns_and_it_sees_the_frozen_one(tmp_path):
    """With its own base it starts as the network that it goes on from, whatever that base is; then the base counts."""
    base, init = trained(1), trained(2)
    for name, network in (("base", base), ("init", init)):
        save_checkpoint(tmp_path / f"{name}.safetensors", network.state_dict(), SMALL)
    told = CoarseConfig(widths=(4, 6, 8), num_blocks=(1, 1, 2), num_guides=3, token_width=12)
    network = FromBase(start(tmp_path / "init.safetensors", "detail", told), load_coarse(tmp_path / "base.safetensors"))
    lr_image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(network(lr_image), init(lr_image), atol=1e-5)
    network(lr_image).square().mean().backward()
    assert network.detail.look.weight.grad[:, :48].abs().max() > 0  # the coarse image's sub-pixels
    assert network.detail.look.weight.grad[:, 48:].abs().max() == 0  # what only the sampler knows
    assert all(parameter.grad is None for parameter in network.base.parameters())
    with torch.no_grad():
        torch.nn.init.normal_(network.detail.look.weight, std=0.1)
        other = FromBase(network.detail, trained(3).requires_grad_(False))
        assert (network(lr_image) - other(lr_image)).abs().max() > 1e-3
        plain = CoarseNetwork(SMALL)  # a base that only interpolates has nothing to show
        silent = FromBase(network.detail, plain)(lr_image)
    assert torch.allclose(plain(lr_image), upscale(lr_image, 4), atol=1e-6)
    assert (silent - network(lr_image)).abs().max() > 1e-3


def test_a_profile_gives_the_part_that_is_trained_and_the_one_before_it(tmp_path):
    told = CoarseConfig(widths=(8, 10, 12), num_blocks=(1, 1, 1), num_guides=3, token_width=16)
    network = tiny_upscaler(detail=told).network
    save_checkpoint(tmp_path / "compact.safetensors", network.state_dict(), network.config)
    for found, part in (
        (start(tmp_path, "detail", told), network.detail),
        (load_coarse(tmp_path), network.coarse),
    ):
        assert all(torch.equal(tensor, part.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_a_network_of_a_profile_goes_on_as_large_as_it_is_and_that_of_a_file_must_fit(tmp_path):
    wider = CoarseConfig(widths=(10, 12, 14), num_blocks=(1, 1, 1))
    save_checkpoint(tmp_path / "coarse.safetensors", trained(1, wider).state_dict(), wider)
    network = tiny_upscaler().network
    save_checkpoint(tmp_path / "compact.safetensors", network.state_dict(), network.config)
    assert start(tmp_path, "coarse", SMALL).config == network.config.coarse != SMALL
    with pytest.raises(ValueError, match="more channels"):
        start(tmp_path / "coarse.safetensors", "coarse", SMALL)


def test_a_profile_without_a_detail_network_has_none_to_go_on_with(tmp_path):
    network = tiny_upscaler().network
    save_checkpoint(tmp_path / "compact.safetensors", network.state_dict(), network.config)
    with pytest.raises(ValueError, match="no detail network"):
        read_network(tmp_path, "detail")
