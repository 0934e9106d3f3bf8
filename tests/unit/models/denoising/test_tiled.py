"""Tiling and the whole sampling loop, beside the official DiT4SR pipeline step by step."""

import json

import pytest
import torch

from models.denoising.guided import Condition, sample
from models.denoising.sampling import stock_sigmas
from models.denoising.tiled import bell_weights, tile_starts, tiled_velocity
from tests.unit.models.denoising.published import FIXTURES, published_network, tensors

CASES = json.loads((FIXTURES / "parity_pipeline" / "cases.json").read_text())


@pytest.mark.parametrize("variant", ["orig", "r1"])
@pytest.mark.parametrize("name", CASES)
def test_every_step_of_the_official_loop_is_repeated(name, variant):
    case, official = CASES[name], tensors("pipeline", "tensors")
    network = published_network("a", variant=variant)
    lr_latent = (official[f"{name}.lr_latent_raw"] - 0.0609) * 1.5305
    sides = ["negative_", ""] if case["cfg"] > 1 else [""]
    text = torch.cat([official[f"{name}.{side}prompt_embeds"] for side in sides])
    pooled = torch.cat([official[f"{name}.{side}pooled"] for side in sides])

    latents = []
    with torch.no_grad():
        # the case that starts from "lr" starts from noise, too: `sample` says why
        sample(
            network,
            official[f"{name}.noise"],
            Condition(lr_latent, text, pooled, case["cfg"]),
            stock_sigmas(case["steps"]),
            tile=case["tile"],
            overlap=case["ov"],
            on_step=lambda step, latent: latents.append(latent),
        )
    assert len(latents) == case["steps"]
    for step, latent in enumerate(latents):
        expected = official[f"{name}.{variant}.step{step}"]
        # guidance 8 over steps of a random network grows rounding with the latents themselves
        torch.testing.assert_close(latent, expected, atol=max(1e-4, 1e-5 * expected.abs().max().item()), rtol=0)


@pytest.mark.parametrize("tile", [12, 64])
def test_tile_weights_are_the_official_ones(tile):
    official = tensors("pipeline", "tensors")[f"gaussian_weights_{tile}"]
    torch.testing.assert_close(bell_weights(tile), official, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "starts"),
    [
        (256, 64, 24, [0, 40, 80, 120, 160, 192]),
        (64, 64, 24, [0]),
        (65, 64, 24, [0, 1]),
        (24, 12, 0, [0, 12]),
    ],
)
def test_tiles_cover_the_axis_and_end_flush_with_it(size, tile, overlap, starts):
    assert tile_starts(size, tile, overlap) == starts


def test_an_overlap_as_wide_as_the_tile_is_refused():
    with pytest.raises(ValueError, match="overlap 12"):
        tile_starts(40, 12, 12)


def test_blending_tiles_that_agree_changes_nothing():
    latent = torch.randn(1, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    blended = tiled_velocity(lambda noisy, lr: noisy - lr, latent, 2 * latent, tile=12, overlap=4)
    torch.testing.assert_close(blended, -latent)
