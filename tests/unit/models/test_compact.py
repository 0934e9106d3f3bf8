"""The shipped weights: what `compact` promises of its pictures, checked on the real network."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation import metrics
from evaluation.corruption import KINDS, corrupt
from models.configs import VISUAL_MODALITIES
from models.imageio import decode_image
from models.pipeline import WEIGHTS, Upscaler
from models.requests import UpscaleOptions

ROOT = Path(__file__).resolve().parents[3]
STEP = 1 / 255


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler.load("compact")


@pytest.fixture(scope="module")
def bridge() -> np.ndarray:
    return decode_image(ROOT / "m3esr/samples/bridge.png").pixels


def test_the_files_are_those_that_were_released():
    for line in (WEIGHTS / "compact/SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((WEIGHTS / "compact" / name).read_bytes()).hexdigest() == digest


def test_the_profile_is_compact(upscaler):
    assert upscaler.describe()["num_parameters"] < 24_000_000
    assert sum(path.stat().st_size for path in (WEIGHTS / "compact").iterdir()) < 48 * 2**20


def test_the_results_are_nearer_to_the_originals_than_bicubic(upscaler):
    """On the two samples, which are hard ones: a little on average; 60 photographs are in the model card."""
    ours, plain = [], []
    for name in ("bridge", "hallway"):
        lr_image = decode_image(ROOT / f"m3esr/samples/{name}.png").pixels
        hr = np.asarray(Image.open(ROOT / f"tests/fixtures/originals/{name}.jpg").convert("RGB"))
        sr = (upscaler.upscale(lr_image, UpscaleOptions()).sr_image * 255).round().astype(np.uint8)
        small = Image.fromarray((lr_image * 255).round().astype(np.uint8))
        bicubic = np.asarray(small.resize((hr.shape[1], hr.shape[0]), Image.Resampling.BICUBIC))
        ours.append((metrics.psnr_y(sr, hr), metrics.ssim_y(sr, hr)))
        plain.append((metrics.psnr_y(bicubic, hr), metrics.ssim_y(bicubic, hr)))
        assert metrics.grid_excess(sr, hr) < 0.7 * metrics.grid_excess(bicubic, hr)
    assert (np.mean(ours, axis=0) > np.mean(plain, axis=0)).all()


@pytest.mark.parametrize(
    "colour",
    [(1, 1, 1), (0, 0, 0), (0.5, 0.5, 0.5), (0.9, 0.2, 0.1), (0.1, 0.4, 0.8)],
    ids=["white", "black", "grey", "red", "blue"],
)
def test_constant_images_stay_constant(upscaler, colour):
    lr_image = np.broadcast_to(np.array(colour, np.float32), (24, 40, 3))
    sr = upscaler.upscale(lr_image, UpscaleOptions()).sr_image
    assert np.abs(sr - np.array(colour, np.float32)).max() <= 3 * STEP


@pytest.fixture(scope="module")
def scenes(upscaler) -> list[tuple[Tensor, Tensor, dict[str, Tensor], Tensor]]:
    """(LR image, U, modalities, tokens) of the two sample photographs."""
    network, seen = upscaler.network, []
    for name in ("bridge", "hallway"):
        pixels = decode_image(ROOT / f"m3esr/samples/{name}.png").pixels[:128, :128].copy()
        lr_image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        with torch.inference_mode():
            _, coarse_sr, uncertainty_map = network.estimate(lr_image)
            seen.append((lr_image, uncertainty_map, *network.render(lr_image, coarse_sr, VISUAL_MODALITIES)))
    return seen


@pytest.mark.parametrize("name", VISUAL_MODALITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_of_a_damaged_map_falls(upscaler, scenes, name, kind):
    """Router sanity: on average over either picture, by a twentieth or more, and no other modality's weight moves.

    Least for edges out of order: most of an edge map is empty, in any order.
    """
    generator, route = torch.Generator().manual_seed(0), upscaler.network.route
    for lr_image, uncertainty_map, modalities, tokens in scenes:
        corrupted = {**modalities, name: corrupt(modalities[name], name, kind, generator)}
        with torch.inference_mode():
            before, after = (route(lr_image, uncertainty_map, maps, tokens) for maps in (modalities, corrupted))
        assert all(torch.equal(before[other], after[other]) for other in VISUAL_MODALITIES if other != name)
        assert float(after[name].mean()) < 0.95 * float(before[name].mean())


def test_weights_differ_from_place_to_place(upscaler, bridge):
    """Every modality's own map: a router that answers one constant routes nothing."""
    maps = upscaler.upscale(bridge, UpscaleOptions()).maps
    assert {name: float(maps[name].std()) > 0.05 for name in VISUAL_MODALITIES} == dict.fromkeys(
        VISUAL_MODALITIES, True
    )


def test_uncertainty_is_higher_where_there_is_detail(upscaler):
    lr_image = np.full((32, 64, 3), 0.5, np.float32)
    lr_image[:, 32:] += 0.2 * np.sign(np.sin(np.arange(32) * 2.0))[None, :, None]
    uncertainty = upscaler.upscale(lr_image, UpscaleOptions()).maps["uncertainty"]
    assert uncertainty[:, 10:].mean() > 3 * uncertainty[:, :6].mean()


def test_a_shifted_crop_shows_the_same_interior(upscaler, bridge):
    """One token of shift moves every tile and every extractor's view; the middle must not care."""
    whole = upscaler.upscale(bridge[:96, :96], UpscaleOptions()).sr_image
    shifted = upscaler.upscale(bridge[4:100, 4:100], UpscaleOptions()).sr_image
    a, b = whole[80:-64, 80:-64], shifted[64:-80, 64:-80]
    assert np.abs(a - b).mean() < 2 * STEP
    assert metrics.psnr(a * 255, b * 255) > 38
