"""The denoiser's stage, on the toy network: losses, dropout, and that it learns."""

import json

import numpy as np
import pytest
import torch

from models.routing.reliability import ReliabilityConfig
from tests.unit.models.tiny import SEGMENTS, tiny_upscaler
from training.denoiser import TOKENS
from training.guided import GuidedBatch, GuidedPairs
from training.guided_stage import MARGIN, GuidedConfig, GuidedStage, inner
from training.image_losses import ImageLosses, ImageLossWeights

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
    return GuidedStage(upscaler.network, upscaler.tokenizer, config, ImageLosses(ImageLossWeights(), None, 0), seed=0)


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


def test_reliability_weighs_in_training_too():
    """A map's own weights fall or rise with what it holds, on the crop without its margin; the heads stay frozen."""
    reliability = ReliabilityConfig(width=8, num_blocks=1, token_channels=16, dino_channels=8)
    upscaler = tiny_upscaler(reliability=reliability)
    guided = GuidedStage(
        upscaler.network, upscaler.tokenizer, GuidedConfig(), ImageLosses(ImageLossWeights(), None, 0), seed=0
    )
    seen = guided.see(batch())
    weights = guided.route(seen, seen.modalities)
    damaged = guided.route(seen, {**seen.modalities, "depth": torch.rand_like(seen.modalities["depth"])})
    for name, weight in weights.items():
        assert weight.shape == (2, TOKENS, TOKENS)
        assert torch.equal(weight, damaged[name]) == (name != "depth")


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


def test_the_toy_network_has_as_many_segments_as_names():
    assert len(tiny_upscaler().config.segment_names) == SEGMENTS
