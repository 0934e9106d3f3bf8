"""The denoiser's stage, on the toy network: losses, dropout, and that it learns."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.metrics import gmsd
from tests.unit.models.tiny import SEGMENTS, tiny_upscaler
from training.denoiser import MARGIN, TOKENS, GuidedConfig, GuidedStage, inner
from training.guided import GuidedBatch, GuidedPairs
from training.losses import edge_loss, gradient_magnitude, grid_loss, robust_perceptual


def blur(image: torch.Tensor) -> torch.Tensor:
    """[1 1 1] / 3 along both axes, border cut."""
    return F.avg_pool2d(image, 3, stride=1)


SIDE = TOKENS + 2 * MARGIN


def batch(size: int = 2) -> GuidedBatch:
    generator = torch.Generator().manual_seed(0)
    hr = torch.nn.functional.interpolate(
        torch.rand(size, 3, SIDE, SIDE, generator=generator), scale_factor=16, mode="bicubic"
    ).clamp(0, 1)
    return GuidedBatch(
        lr_image=torch.nn.functional.avg_pool2d(hr, 4),
        hr_image=hr,
        dino=torch.randn(size, 8, TOKENS, TOKENS, generator=generator),
        segmentation=torch.rand(size, 3, 16 * TOKENS, 16 * TOKENS, generator=generator),
        depth=torch.rand(size, 3, 16 * TOKENS, 16 * TOKENS, generator=generator),
        captions=["a photo of sky"] * size,
    )


def stage(config: GuidedConfig) -> GuidedStage:
    upscaler = tiny_upscaler()
    upscaler.network.requires_grad_(True)
    return GuidedStage(upscaler.network, upscaler.tokenizer, config, None, seed=0)


def test_every_part_but_the_frozen_ones_gets_a_gradient():
    guided = stage(GuidedConfig(modality_dropout=0.0, guidance_dropout=0.0, text_dropout=0.0))
    guided.losses(batch())["loss"].backward()
    trained = (
        "router.to_weights.weight",
        "fusion.experts.dino.to_query.weight",
        "fusion.map_encoder.stem.weight",
        "fusion.temperature.to_alpha.weight",
        "denoiser.proj_out.weight",
        "text_encoder.embed.weight",
    )
    for name in trained:
        gradient = guided.network.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name
    for name, parameter in guided.network.named_parameters():
        if name.startswith(("coarse.", "perception.")):
            assert parameter.grad is None, name


def test_it_learns():
    guided = stage(GuidedConfig(modality_dropout=0.0, guidance_dropout=0.0, text_dropout=0.0, end_probability=1.0))
    optimizer = torch.optim.Adam([p for p in guided.network.parameters() if p.requires_grad], lr=3e-3)
    history, data = [], batch()
    for _ in range(15):
        losses = guided.losses(data)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(float(losses["velocity"].detach()))
    assert np.mean(history[-3:]) < 0.9 * np.mean(history[:3])


def test_dropped_guidance_leaves_the_router_out():
    losses = stage(GuidedConfig(guidance_dropout=1.0)).losses(batch())
    assert "unbiased" not in losses


def test_the_unbiasedness_penalty_is_zero_when_the_mean_weight_is_the_one_asked_for():
    """E[w] = w_bar of Theorem 3.1."""
    guided = stage(GuidedConfig(modality_dropout=0.0, guidance_dropout=0.0))
    torch.nn.init.zeros_(guided.network.router.to_weights.weight)
    torch.nn.init.zeros_(guided.network.router.to_weights.bias)
    assert float(guided.losses(batch())["unbiased"].detach()) == pytest.approx(0.0, abs=1e-10)
    torch.nn.init.constant_(guided.network.router.to_weights.bias, 4.0)
    assert float(guided.losses(batch())["unbiased"].detach()) > 0.5


def test_crops_of_every_array_show_the_same_place(tmp_path):
    """Pixels, maps and features are made equal to their coordinates, then compared after the crop."""
    grid = 20
    pairs, features = tmp_path / "pairs", tmp_path / "features"
    pairs.mkdir(), features.mkdir()

    def ramp(cells: int) -> np.ndarray:
        return np.broadcast_to((np.arange(grid * cells) // cells).astype(np.uint8), (grid * cells, grid * cells))

    np.save(pairs / "hr.npy", np.stack([ramp(16)] * 3, -1)[None])
    np.save(pairs / "lr_000.npy", np.stack([ramp(4)] * 3, -1)[None])
    (pairs / "index.json").write_text(json.dumps({"num_draws": 1, "held_out": []}))
    np.save(features / "dino_000.npy", ramp(1)[None, None].astype(np.float16))
    for name in ("segmentation", "depth"):
        np.save(features / f"{name}_000.npy", np.stack([ramp(2)] * 3)[None])
    (features / "captions_000.json").write_text('["a photo"]')
    sample = GuidedPairs(pairs, features).sample_batch(np.random.default_rng(0), 8, TOKENS, MARGIN)
    for k in range(8):
        tokens = sample.dino[k, 0, 0]
        assert torch.equal(inner(sample.lr_image, 4)[k, 0, 0, ::4] * 255, tokens)
        assert torch.allclose(inner(sample.hr_image, 16)[k, 0, 0, ::16] * 255, tokens)
        assert torch.allclose(sample.depth[k, 0, 8, 8::16] * 255, tokens, atol=0.6)


class Difference(torch.nn.Module):
    """Stands in for LPIPS: the mean difference of two images."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def test_the_perceptual_loss_looks_at_the_same_place_of_both():
    image, generator = torch.rand(2, 3, 160, 160), torch.Generator().manual_seed(0)
    for _ in range(4):
        assert float(robust_perceptual(Difference(), image, image, generator)) == 0.0
    assert float(robust_perceptual(Difference(), image, image.flip(-1), generator)) > 0.1


def test_the_perceptual_loss_is_blind_to_the_finest_octave():
    hr_image = torch.full((1, 3, 192, 192), 0.5)
    comb = hr_image.clone()
    comb[..., ::2], comb[..., 1::2] = 0.7, 0.3
    generator = torch.Generator().manual_seed(0)
    assert float(Difference()(comb, hr_image)) == pytest.approx(0.2)
    for _ in range(10):
        assert float(robust_perceptual(Difference(), comb, hr_image, generator)) < 0.1


def test_the_toy_network_has_as_many_segments_as_names():
    assert len(tiny_upscaler().config.segment_names) == SEGMENTS


def test_a_grid_costs_and_plain_detail_does_not():
    hr_image, other = (blur(torch.rand(1, 3, 66, 66, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    for period in (2, 4, 8):
        comb = hr_image.clone()
        comb[..., ::period] += 0.2
        assert float(grid_loss(comb, hr_image)) > 5 * float(grid_loss(other, hr_image)), period


def test_the_edge_loss_asks_for_the_edges_of_the_hr_image_and_for_no_others():
    generator = torch.Generator().manual_seed(0)
    hr_image = torch.rand(1, 3, 64, 64, generator=generator)
    blurred = blur(blur(hr_image))
    noisy = (hr_image[..., 2:-2, 2:-2] + 0.5 * torch.randn(1, 3, 60, 60, generator=generator)).clamp(0, 1)
    assert float(edge_loss(hr_image, hr_image)) < 1e-3
    assert float(edge_loss(blurred, hr_image[..., 2:-2, 2:-2])) > 0.2
    assert float(edge_loss(noisy, hr_image[..., 2:-2, 2:-2])) > 0.2


def test_the_edge_loss_is_the_deviation_that_gmsd_measures():
    generator = torch.Generator().manual_seed(0)
    hr_image = F.interpolate(torch.rand(1, 3, 48, 48, generator=generator), scale_factor=4, mode="bicubic").clamp(0, 1)
    sr_image = blur(F.pad(hr_image, (1, 1, 1, 1), mode="replicate"))
    a, b = gradient_magnitude(sr_image), gradient_magnitude(hr_image)
    deviation = ((2 * a * b + 170) / (a.square() + b.square() + 170)).std()
    arrays = [(255 * x[0].permute(1, 2, 0)).numpy() for x in (sr_image, hr_image)]
    assert float(deviation) == pytest.approx(gmsd(*arrays), rel=0.1)
