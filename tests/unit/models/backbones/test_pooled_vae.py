"""The VAE with pooled group norms: diffusers' numbers for one tile, and for many where context covers what matters."""

from itertools import pairwise

import pytest
import torch
from diffusers import AutoencoderKL

from models.backbones.memory import Placement, TileSizes
from models.backbones.pooled_vae import PADS, PooledVae, cut
from models.backbones.vae import TiledVae

CPU = torch.device("cpu")


def tiny_vae(kind, mid_attention=True, **changes):
    torch.manual_seed(0)
    settings = {
        "block_out_channels": (4, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "mid_block_add_attention": mid_attention,
    }
    network = AutoencoderKL(**settings | changes).eval().requires_grad_(False)
    for parameter in network.parameters():  # norms that start at 1 and 0 would hide a norm that is applied wrongly
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return kind(network, Placement("none", CPU))


def picture(height=96, width=128):
    """A picture whose parts differ in brightness, so that a tile's statistics are not those of the whole."""
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (0.5 * noise + 0.5 * torch.linspace(0, 1, width)).clamp(0, 1)


@pytest.mark.parametrize("changes", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
@torch.no_grad()
def test_one_tile_gives_the_latents_and_pictures_of_diffusers(changes):
    vae = tiny_vae(PooledVae, **changes)
    stock = vae.network.encode(2 * picture() - 1).latent_dist.mode()
    latent = vae.encode(picture(), TileSizes())
    torch.testing.assert_close(latent, stock * 0.18215, atol=1e-5, rtol=1e-4)
    stock_picture = (vae.network.decode(stock).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(vae.decode(latent, TileSizes()), stock_picture, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["encode", "decode"])
@torch.no_grad()
def test_many_tiles_with_enough_context_equal_one(name, monkeypatch):
    monkeypatch.setitem(PADS, name, 12)
    vae = tiny_vae(PooledVae, mid_attention=False)  # its attention has no bounded context
    image = picture() if name == "encode" else torch.randn(1, 4, 24, 32)
    run = getattr(vae, name)
    told = []
    tiles = TileSizes({name: 6})
    tiled = run(image, tiles, on_tile=told.append)
    torch.testing.assert_close(tiled, run(image, TileSizes()), atol=1e-4, rtol=1e-4)
    assert told == sorted(told) and told[-1] == 1 and len(told) > 5


@torch.no_grad()
def test_pooled_norms_are_nearer_to_the_whole_than_norms_of_a_tile():
    """With the published context and the attention in the middle, which sees one tile."""
    latent = tiny_vae(PooledVae).encode(picture(192, 256), TileSizes())
    whole = tiny_vae(PooledVae).decode(latent, TileSizes())
    pooled, alone = (
        (tiny_vae(kind).decode(latent, TileSizes({"decode": 8})) - whole).abs().mean() for kind in (PooledVae, TiledVae)
    )
    assert pooled < 0.5 * alone


@torch.no_grad()
def test_out_of_memory_halves_the_tile_and_is_told():
    vae = tiny_vae(PooledVae)
    convolution, asked = vae.network.decoder.conv_in.forward, []

    def in_little_memory(cells):
        asked.append(tuple(cells.shape[-2:]))
        if cells.shape[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return convolution(cells)

    vae.network.decoder.conv_in.forward = in_little_memory
    tiles = TileSizes({"decode": 64})
    assert vae.decode(torch.zeros(1, 4, 12, 50), tiles).shape == (1, 3, 96, 400)
    assert asked == [(12, 50), (12, 36), (12, 36)]  # 25 cells each, with 11 of context on one side
    assert tiles.notes == ["Memory ran out: VAE decoder tiles were halved to 32 latent cells."]


@pytest.mark.parametrize(("length", "side"), [(1, 8), (8, 8), (9, 8), (100, 7)])
def test_parts_cover_an_axis_once(length, side):
    parts = cut(length, side)
    assert parts[0].start == 0 and parts[-1].stop == length
    assert all(a.stop == b.start for a, b in pairwise(parts))
    assert max(part.stop - part.start for part in parts) <= side
