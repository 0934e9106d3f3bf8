"""What the catalogue says of a profile's networks is what the networks are: the service counts without loading them."""

import pytest

from jobs import PROFILES
from models import pipeline
from models.backbones.memory import PUBLISHED_SIDES
from models.backbones.quality import PublishedSampling
from models.backbones.sizes import VAE_SCALE, work_sizes
from models.checkpoint import read_config
from models.configs import M3ESRConfig
from models.denoising.tiled import tile_places
from models.network import SCALE
from models.region import CELLS
from models.tiling import plan_tiles

PROFILE = PROFILES["compact"]
TILING = PROFILE.tiling


@pytest.fixture(scope="module")
def config():
    return read_config(pipeline.WEIGHTS / "compact" / "compact.safetensors", M3ESRConfig)


def test_the_numbers_are_the_networks(config):
    assert (TILING.patch, TILING.min_side, TILING.scale) == (pipeline.PATCH, pipeline.MIN_SIDE, SCALE)
    assert (TILING.region, TILING.region_overlap) == (pipeline.REGION, pipeline.REGION_OVERLAP)
    assert (TILING.tile, TILING.tile_overlap) == (config.sampler.tile // CELLS, config.sampler.overlap // CELLS)
    assert PROFILE.num_steps == config.sampler.num_steps
    assert PROFILE.best_num_steps == config.sampler.best_num_steps


@pytest.mark.parametrize("width", [1, 16, 47, 48, 49, 52, 127, 128, 129, 192, 193, 368, 369, 1000])
@pytest.mark.parametrize("height", [5, 128, 300])
def test_the_count_is_that_of_the_plan(width, height):
    rows, columns = (-(-max(side, pipeline.MIN_SIDE) // pipeline.PATCH) for side in (height, width))
    regions = plan_tiles(rows, columns, TILING.region, TILING.region_overlap, even=True)
    tiles = [plan_tiles(r.height, r.width, TILING.tile, TILING.tile_overlap) for r in regions]
    num_pixels = sum(r.height * r.width for r in regions) * (TILING.patch * TILING.scale) ** 2
    assert TILING.count(width, height) == (len(regions), sum(map(len, tiles)), num_pixels)


@pytest.mark.parametrize("upscale", [4.0, 2.5, 1.0])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (128, 128), (49, 49), (129, 300), (2000, 700)])
@pytest.mark.parametrize("name", ["quality", "fidelity"])
def test_a_backbones_count_follows_the_published_size_rule_and_tiles(name, width, height, upscale):
    tiling = PROFILES[name].tiling
    work = work_sizes(height, width, upscale, tiling.process_side, tiling.cell).work
    places = tile_places(work[0] // tiling.cell, work[1] // tiling.cell, tiling.tile, tiling.overlap)
    cells = sum((rows.stop - rows.start) * (columns.stop - columns.start) for _, rows, columns in places)
    assert tiling.count(width, height, upscale) == (1, len(places), cells * tiling.cell**2)


def test_the_defaults_of_quality_are_those_of_its_sampling():
    profile, sampling = PROFILES["quality"], PublishedSampling()
    assert (profile.num_steps, profile.cfg_scale) == (sampling.num_steps, sampling.cfg_scale)
    assert profile.color_correction == sampling.color_correction
    assert profile.tiling.tile == PUBLISHED_SIDES["denoise"]
    assert profile.tiling.overlap == profile.tiling.tile * sampling.overlap
    assert (profile.tiling.process_side, profile.tiling.cell) == (sampling.process_side, VAE_SCALE)
