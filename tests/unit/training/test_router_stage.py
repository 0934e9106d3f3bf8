"""The router's stage: gains are those of the theorem, and the router learns where they are."""

import torch
import torch.nn.functional as F

from models.routing.reliability import ReliabilityConfig
from models.routing.router import RouterConfig, UncertaintyRouter
from tests.unit.models.tiny import tiny_upscaler
from tests.unit.training.test_guided import batch
from training.denoiser import TOKENS
from training.guided import GuidedBatch, quarter
from training.guided_stage import GuidedConfig, GuidedStage
from training.image_losses import ImageLosses, ImageLossWeights
from training.router import MarginalGains, centre, expert_weights, join_quarters, router_losses


def test_every_modality_has_a_gain_per_patch():
    upscaler = tiny_upscaler()
    judge = ImageLosses(ImageLossWeights(), None, seed=0)
    gains = MarginalGains(GuidedStage(upscaler.network, upscaler.tokenizer, GuidedConfig(), judge, seed=0))
    measured = gains.measure(batch())
    assert set(measured) == set(upscaler.config.router.modalities)
    for gain in measured.values():
        assert gain.shape == (2, TOKENS**2)
        assert torch.isfinite(gain).all() and gain.abs().max() > 0
    gains.warm_up([batch()] * 8)
    standard = gains.standardise(measured)
    assert standard.mean((1, 2)).abs().max() < 1 and 0.2 < float(standard.std()) < 5


def test_the_price_makes_the_best_weight_the_expected_gain():
    gains = torch.full((1, 1, 8), 0.3)
    losses = [float(router_losses(torch.full((1, 1, 8), w), gains, 0.5)["loss"]) for w in (0.7, 0.8, 0.9)]
    assert min(losses) == losses[1]


def test_the_router_learns_where_a_modality_gains():
    """Two halves of an image look different; one modality helps on the left, the other on the right."""
    torch.manual_seed(0)
    router = UncertaintyRouter(RouterConfig(width=12, num_heads=2, num_layers=1, modalities=("depth", "dino")))
    lr_image = torch.full((1, 3, 16, 16), 0.2)
    lr_image[..., 8:] = 0.8
    left = torch.where(torch.arange(4) < 2, 1.0, -1.0).expand(1, 4, 4)
    gains = torch.stack([left, -left]).flatten(2)
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-2)
    for _ in range(60):
        weights = router(lr_image, torch.zeros(1, 1, 4, 4))
        losses = router_losses(torch.stack([w.flatten(1) for w in weights.values()]), gains, 0.5)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert float(losses["gamma"].detach()) > 0.5
    depth = weights["depth"][0].detach()
    assert depth[:, 0].mean() > 0.8 and depth[:, 3].mean() < 0.2


def test_the_mean_weight_is_the_constant_with_what_the_heads_add():
    upscaler = tiny_upscaler(reliability=ReliabilityConfig(width=8, num_blocks=1, token_channels=16, dino_channels=8))
    judge = ImageLosses(ImageLossWeights(), None, seed=0)
    stage = GuidedStage(upscaler.network, upscaler.tokenizer, GuidedConfig(), judge, seed=0)
    upscaler.network.reliability.centre -= 2  # all maps are praised
    seen = stage.see(batch())
    before = expert_weights(stage, seen).mean((1, 2, 3))
    assert (before > 0.7).all()
    centre(stage, [batch()], 0.5)
    after = expert_weights(stage, seen).mean((1, 2, 3))
    assert (after - 0.5).abs().max() < 0.02


def test_quarters_keep_their_places():
    """A crop whose tokens are numbered is cut, and its quarters' gains are joined again in the order of the whole."""
    side, margin = 8, 2
    numbers = torch.arange(float(side * side)).reshape(1, 1, side, side)
    wide = F.pad(numbers, (margin,) * 4, value=-1)
    whole = GuidedBatch(
        lr_image=wide.repeat_interleave(4, -1).repeat_interleave(4, -2),
        hr_image=wide.repeat_interleave(16, -1).repeat_interleave(16, -2),
        dino=numbers,
        segmentation=numbers.repeat_interleave(16, -1).repeat_interleave(16, -2),
        depth=numbers.repeat_interleave(16, -1).repeat_interleave(16, -2),
        captions=["a photo"],
    )
    parts = quarter(whole, margin)
    assert parts.captions == ["a photo"] * 4
    assert torch.equal(parts.lr_image[:, :, 8:-8:4, 8:-8:4], parts.dino)
    assert torch.equal(parts.hr_image[:, :, 32:-32:16, 32:-32:16], parts.dino)
    assert torch.equal(parts.depth[:, :, ::16, ::16], parts.dino)
    assert torch.equal(join_quarters(parts.dino.flatten(2).transpose(0, 1))[0, 0], numbers.flatten())
