"""What is published of a run: maps, files, numbers."""

import io

import numpy as np
import pytest
from PIL import Image
from prometheus_client import generate_latest

from jobs import JobError, UpscaleRequest
from models.imageio import decode_image
from tests.fakes import picture
from tests.unit.models.tiny import tiny_upscaler
from tests.unit.worker.fakes import FakeUpscaler
from worker import results
from worker.metrics import WorkerMetrics


def run_fake(request, data=None):
    source = results.decode(data or picture(), 10**6)
    height, width = source.pixels.shape[:2]
    return FakeUpscaler().upscale(source.pixels, results.upscale_options(request, width, height)), source


def test_options_carry_the_exact_output_size_and_only_modalities_that_are_on():
    request = UpscaleRequest(width=20, modalities={"depth": 0.5, "edge": 0.0})
    options = results.upscale_options(request, 16, 12)
    assert (options.width, options.height, options.modalities) == (20, 15, {"depth": 0.5})


def test_a_size_out_of_reach_is_an_invalid_option():
    with pytest.raises(JobError, match="invalid-option"):
        results.upscale_options(UpscaleRequest(width=1000), 16, 12)


def test_a_map_comes_as_picture_of_the_results_aspect_and_as_exact_values():
    values = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    rendered = results.render_map("depth", values, (4096, 2048))
    assert Image.open(io.BytesIO(rendered.png)).size == (1024, 512)
    stored = np.load(io.BytesIO(rendered.npy))
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, values)
    assert rendered.info.mean == 0.5
    assert rendered.info.quantiles["p50"] == 0.5


def test_weights_are_drawn_on_their_whole_range_and_uncertainty_on_its_own():
    values = np.full((2, 2), 0.1, dtype=np.float32)
    weight = results.render_map("depth", values, (2, 2)).png
    uncertainty = results.render_map("uncertainty", values, (2, 2)).png
    assert brightness(weight) < 250
    assert brightness(uncertainty) > 500


def brightness(png):
    # A heat map is stored as indices into a palette: only the colours mean anything
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[0, 0].sum()


def test_a_map_that_is_zero_everywhere_can_be_drawn():
    results.render_map("uncertainty", np.zeros((2, 2), dtype=np.float32), (2, 2))


def test_a_map_with_nan_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        results.render_map("depth", np.array([[np.nan]], dtype=np.float32), (2, 2))


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "tiff"])
def test_the_file_has_the_format_and_size_asked_for(name):
    request = UpscaleRequest(scale=2, output_format=name)
    result, source = run_fake(request)
    image = Image.open(io.BytesIO(results.encode(result, request, source)))
    assert (image.format.lower(), image.size) == (name, (32, 24))


def test_alpha_grows_with_the_image():
    request = UpscaleRequest(scale=2)
    result, source = run_fake(request, picture(mode="RGBA"))
    decoded = decode_image(results.encode(result, request, source))
    assert decoded.alpha is not None
    assert decoded.alpha.shape == (24, 32)


def test_the_outcome_survives_json_although_the_consistency_is_infinite():
    request = UpscaleRequest(seed=7)
    result, _ = run_fake(request)
    maps = results.render_maps(result)
    outcome = results.build_outcome(result, request, b"image", maps, {"coarse": 0.5}, FakeUpscaler().describe())
    assert outcome.model_dump_json()
    assert outcome.trust.lr_consistency_psnr == results.MAX_PSNR
    assert (outcome.seed, outcome.caption, outcome.fusion) == (7, "a picture", "trained")
    assert set(outcome.maps) == {"segmentation", "depth", "edge", "dino", "uncertainty"}
    assert outcome.model.sha256 == "f" * 64


def test_the_real_networks_class_gives_all_that_is_published():
    request = UpscaleRequest(scale=2, num_steps=1)
    source = results.decode(picture(), 10**6)
    upscaler, stages = tiny_upscaler(), []
    options = results.upscale_options(request, 16, 12)
    result = upscaler.upscale(source.pixels, options, on_progress=lambda event: stages.append(event.stage))
    maps = results.render_maps(result)
    image = results.encode(result, request, source)
    outcome = results.build_outcome(result, request, image, maps, result.timings, upscaler.describe())
    assert (outcome.result.width, outcome.result.height) == (32, 24)
    assert set(outcome.maps) == {"segmentation", "depth", "edge", "dino", "uncertainty"}
    assert "denoising" in stages
    assert outcome.model_dump_json()


def test_the_preset_reaches_the_network():
    assert results.upscale_options(UpscaleRequest(preset="fast"), 16, 12).preset == "fast"
    with pytest.raises(JobError, match="invalid-option"):
        results.upscale_options(UpscaleRequest(profile="fidelity", preset="fast"), 16, 12)


def test_raw_uncertainty_is_drawn_on_its_own_range_and_is_no_weight():
    values = np.full((2, 2), 0.1, dtype=np.float32)
    drawn = {name: results.render_map(name, values, (2, 2)).png for name in ("uncertainty_raw", "uncertainty", "depth")}
    assert drawn["uncertainty_raw"] == drawn["uncertainty"] != drawn["depth"]
    metrics = WorkerMetrics()
    metrics.observe_run({}, {"uncertainty": 0.1, "uncertainty_raw": 0.2, "depth": 0.5}, 100)
    told = generate_latest(metrics.registry).decode()
    assert 'modality="depth"' in told and "uncertainty_raw" not in told
    assert "m3esr_uncertainty_mean_sum 0.1" in told
