"""The tiled VAE: its numbers beside diffusers' own, tiles that really run, and memory that runs out."""

import pytest
import torch

from models.backbones.memory import Placement, TileSizes
from models.backbones.vae import TiledVae
from tests.unit.models.published_tiny import save_vae

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "vae"
    torch.manual_seed(0)
    save_vae(folder)
    return TiledVae.load(folder, torch.float32, Placement("none", CPU))


def picture(height=144, width=200):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_one_tile_gives_the_latents_and_pictures_of_diffusers(vae):
    latent = vae.encode(picture(), TileSizes())
    stock = vae.network.encode(2 * picture() - 1).latent_dist.mode()
    torch.testing.assert_close(latent, (stock - 0.0609) * 1.5305)
    stock_picture = vae.network.decode(stock).sample / 2 + 0.5
    torch.testing.assert_close(vae.decode(latent, TileSizes()), stock_picture.clamp(0, 1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_samples_of_the_posterior_differ_by_generator_only(vae):
    def draw(*seeds):
        return vae.encode(picture(), TileSizes(), [torch.Generator().manual_seed(seed) for seed in seeds])

    both = draw(1, 2)
    assert both.shape == (2, 16, 18, 25)
    assert torch.equal(both, draw(1, 2))
    assert not torch.equal(both[0], both[1])


@torch.no_grad()
def test_tiles_really_run_and_can_be_watched(vae):
    sides, told = [], []
    encode, decode = vae.network.encode, vae.network.decode
    vae.network.encode = lambda pixels: sides.append(tuple(pixels.shape[-2:])) or encode(pixels)
    vae.network.decode = lambda cells: sides.append(tuple(cells.shape[-2:])) or decode(cells)
    try:
        tiles = TileSizes({"encode": 16, "decode": 16})
        latent = vae.encode(picture(), tiles, on_tile=told.append)
        assert latent.shape == (1, 16, 18, 25)
        assert set(sides) == {(128, 128)} and len(sides) == 4
        assert vae.decode(latent, tiles).shape == (1, 3, 144, 200)
        assert set(sides[4:]) == {(16, 16)} and len(sides) == 8
    finally:
        vae.network.encode, vae.network.decode = encode, decode
    assert told == [0.25, 0.5, 0.75, 1.0]


@torch.no_grad()
def test_out_of_memory_halves_the_tile_and_is_told(vae):
    decode, asked = vae.network.decode, []

    def decode_in_little_memory(cells):
        asked.append(cells.shape[-1])
        if cells.shape[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(cells)

    vae.network.decode = decode_in_little_memory
    try:
        tiles = TileSizes({"decode": 64})
        assert vae.decode(torch.zeros(1, 16, 24, 40), tiles).shape == (1, 3, 192, 320)
        assert asked[:2] == [40, 32] and set(asked[2:]) == {16}
        assert tiles.notes == [f"Memory ran out: VAE decoder tiles were halved to {n} latent cells." for n in (32, 16)]
        vae.network.decode = lambda cells: decode_in_little_memory(torch.zeros(1, 16, 8, 99))
        with pytest.raises(torch.OutOfMemoryError):
            vae.decode(torch.zeros(1, 16, 24, 40), tiles)
    finally:
        vae.network.decode = decode


def test_another_error_is_no_shortage(vae):
    def fail(side):
        raise RuntimeError("shapes")

    tiles = TileSizes()
    with pytest.raises(RuntimeError, match="shapes"):
        tiles.fit("decode", fail)
    assert tiles.notes == []


@pytest.mark.parametrize(("free", "sides"), [(None, (64, 128)), (2**40, (64, 128)), (10**9, (64, 32)), (0, (16, 16))])
def test_tiles_follow_free_memory(free, sides):
    tiles = TileSizes()
    tiles.choose("denoise", free)
    tiles.choose("decode", free)
    assert (tiles.sides["denoise"], tiles.sides["decode"]) == sides
    assert len(tiles.notes) == (sides[0] < 64) + (sides[1] < 128)
