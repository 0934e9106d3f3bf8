"""Tiles cover everything once blended; a network that looks at single pixels does not notice them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from models.routing.realesrgan import build_from_state
from models.tiling import (
    BlendAccumulator,
    Tile,
    crop_tile,
    plan_tiles,
    run_padded_tiles,
    run_tiled,
    tile_batches,
)
from tests.unit.models.test_realesrgan import RRDB_FIXTURES

FEATHERS = st.sampled_from(["linear", "cosine"])


@st.composite
def plans(draw):
    """(height, width, tile, overlap, multiple) that plan_tiles takes."""
    multiple = draw(st.sampled_from([1, 2, 4, 7]))
    tile = draw(st.integers(1, 8))
    overlap = draw(st.integers(0, tile - 1))
    sides = st.integers(1, 70)
    return draw(sides), draw(sides), tile * multiple, overlap * multiple, multiple


@settings(deadline=None, max_examples=60)
@given(plans(), st.booleans())
def test_every_pixel_is_covered_by_aligned_tiles_of_one_size(plan, square):
    height, width, tile, _overlap, multiple = plan
    tiles = plan_tiles(*plan, square=square)
    covered = torch.zeros(height + multiple, width + multiple, dtype=torch.bool)
    for member in tiles:
        covered[member.rows, member.columns] = True
        assert not any(n % multiple for n in (member.top, member.left, member.height, member.width))
        assert member.top + member.height < height + multiple
        assert member.left + member.width < width + multiple
    assert covered[:height, :width].all()
    assert len(set(tiles)) == len(tiles)
    assert len({(t.height, t.width) for t in tiles}) == 1
    assert max(tiles[0].height, tiles[0].width) <= tile
    assert not square or tiles[0].height == tiles[0].width


@settings(deadline=None, max_examples=60)
@given(plans(), FEATHERS, st.integers(1, 3))
def test_the_weights_sum_to_one_everywhere(plan, feather, scale):
    height, width, _tile, overlap, _multiple = plan
    tiles = plan_tiles(*plan)
    blend = BlendAccumulator(tiles, height, width, overlap, scale, feather)
    for member in reversed(tiles):
        blend.add(member, torch.full((1, 2, member.height * scale, member.width * scale), 0.7))
    assert blend.result().shape == (1, 2, height * scale, width * scale)
    assert (blend.result() - 0.7).abs().max() < 1e-6


@settings(deadline=None, max_examples=30)
@given(plans(), FEATHERS, st.integers(1, 5))
def test_a_pixelwise_network_gives_the_same_with_and_without_tiles(plan, feather, batch_size):
    height, width, tile, overlap, multiple = plan
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    tiled = run_tiled(
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        image,
        tile,
        overlap,
        multiple=multiple,
        scale=2,
        feather=feather,
        batch_size=batch_size,
    )
    assert torch.allclose(tiled, F.interpolate(image, scale_factor=2, mode="nearest"), atol=1e-6)


def test_the_last_tile_ends_at_the_border():
    assert [t.left for t in plan_tiles(64, 100, 64, 16)] == [0, 36]
    assert [t.left for t in plan_tiles(64, 200, 64, 16)] == [0, 48, 96, 136]


def test_an_image_smaller_than_a_tile_is_one_tile_of_its_own_rounded_size():
    assert plan_tiles(13, 1, 64, 16, 8) == (Tile(0, 0, 16, 8),)


def test_what_overhangs_the_border_repeats_the_edge():
    crop = crop_tile(torch.tensor([[[[1.0, 2.0, 3.0]]]]), Tile(0, 0, 2, 4))
    assert crop[0, 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3]]


def test_two_tiles_that_disagree_are_crossfaded_without_a_step():
    tiles = plan_tiles(8, 96, 64, 32)
    for feather in ("linear", "cosine"):
        blend = BlendAccumulator(tiles, 8, 96, 32, feather=feather)
        blend.add(tiles[0], torch.zeros(1, 1, 8, 64))
        blend.add(tiles[1], torch.ones(1, 1, 8, 64))
        row = blend.result()[0, 0, 4]
        assert row[:32].max() == 0 and row[64:].min() == 1
        assert row.diff().min() >= 0
        assert row.diff().max() < 0.06


def test_the_accumulator_wants_each_tile_once():
    tiles = plan_tiles(8, 12, 8, 4)
    blend = BlendAccumulator(tiles, 8, 12, 4)
    blend.add(tiles[0], torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="1 tiles have not been added"):
        blend.result()
    with pytest.raises(ValueError, match="added before"):
        blend.add(tiles[0], torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="the tile needs"):
        blend.add(tiles[1], torch.zeros(1, 1, 8, 7))


@pytest.mark.parametrize("plan", [(8, 8, 6, 2, 4), (8, 8, 8, 3, 4), (8, 8, 8, 8, 1), (0, 8, 8, 0, 1)])
def test_plans_without_sense_are_refused(plan):
    with pytest.raises(ValueError):
        plan_tiles(*plan)


def test_batches_hold_every_tile_in_order():
    tiles = plan_tiles(20, 20, 8, 2)
    assert tuple(t for batch in tile_batches(tiles, 4) for t in batch) == tiles
    assert [len(batch) for batch in tile_batches(tiles, 4)] == [4, 4, 1]


def test_progress_is_told_and_can_cancel():
    told = []
    run_tiled(lambda x: x, torch.rand(1, 1, 8, 20), 8, 2, batch_size=2, on_tile=lambda *p: told.append(p))
    assert told == [(2, 3), (3, 3)]

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tiled(lambda x: x, torch.rand(1, 1, 8, 20), 8, 2, on_tile=cancel)


def test_padded_tiles_equal_real_esrganer():
    network = build_from_state(load_file(RRDB_FIXTURES / "weights.safetensors"))
    official = load_file(RRDB_FIXTURES / "tiling.safetensors")
    lr_image = official["image_bgr_u8"].flip(-1).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        sr_image = run_padded_tiles(network, lr_image, tile=16, pad=10, scale=4)
        whole = run_padded_tiles(network, lr_image, tile=0, pad=10, scale=4)
    assert (sr_image.clamp(0, 1) - official["out_float_tile16_prepad0"]).abs().max() < 1e-5
    whole_u8 = (whole.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).flip(-1).byte()
    levels = whole_u8.int() - official["out_bgr_u8_tile0_prepad0"].int()
    assert levels.abs().max() <= 1  # a value half-way between two levels may round either way
    assert levels.ne(0).float().mean() < 1e-3


def test_context_as_wide_as_the_receptive_field_hides_the_tiles():
    network = torch.nn.Conv2d(3, 3, 7, padding=3)
    image = torch.rand(1, 3, 21, 34)
    with torch.no_grad():
        assert torch.allclose(run_padded_tiles(network, image, 8, 3, 1), network(image), atol=1e-5)
        assert not torch.allclose(run_padded_tiles(network, image, 8, 2, 1), network(image), atol=1e-3)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 60, 61, 128, 129, 500])
def test_even_tiles_are_as_many_as_others_and_waste_less(length):
    plain = plan_tiles(length, 32, 32, 4)
    even = plan_tiles(length, 32, 32, 4, even=True)
    assert len(even) == len(plain)
    assert max(tile.height for tile in even) <= max(tile.height for tile in plain)
    ends = [tile.top + tile.height for tile in even]
    assert even[0].top == 0 and ends[-1] == length
    shared = [end - tile.top for end, tile in zip(ends, even[1:], strict=False)]
    # one tile, the last, may share more: by less than a place for each tile
    assert all(share == 4 for share in shared[:-1]) and all(4 <= share < 4 + len(even) for share in shared[-1:])
