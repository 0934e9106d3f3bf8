"""Stage 4: the router alone, on the covariance of its weights with the marginal gain of each modality (Theorem 3.1).

    python -m training.router (--pairs DIR --features DIR | --photographs DIR) --profile DIR --out DIR [--lpips FILE]
        [--minutes N]

With everything else frozen, the marginal gain of modality m at patch i is Delta = -<grad_h loss(h_static), E_m> at the
static fusion h_static = z + sum w_bar E_m. Maximising Cov(w, Delta) with a quadratic price on w - w_bar makes w - w_bar
the router's estimate of the expected gain, standardised per modality and divided by the price; centring Delta keeps
E[w] = w_bar. The theorem sets no price; without one every weight would end at 0 or 1.

The router looks at four times the area of the denoiser's crop: the gains of four neighbouring crops, one view. What
the reliability heads say stands in its logits meanwhile, so it learns what they leave to be told.
"""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network import Prepared
from models.pipeline import Upscaler
from models.routing.router import UncertaintyRouter
from training.denoiser import TOKENS, add_batch_arguments, check_batch_arguments, open_batches, save
from training.guided import GuidedBatch, quarter
from training.guided_stage import MARGIN, GuidedConfig, GuidedStage, Seen
from training.image_losses import ImageLosses, ImageLossWeights
from training.loop import LoopConfig, Trainer

MOMENTUM = 0.995  # of the running mean and deviation of the gains
WARM_UP_BATCHES, CENTRE_BATCHES = 60, 100


class MarginalGains:
    """Delta per modality and patch, standardised by running statistics, with the experts' weights held at w_bar."""

    def __init__(self, stage: GuidedStage):
        self.stage = stage
        self.mean = self.square = torch.zeros(())

    def measure(self, batch: GuidedBatch) -> dict[str, Tensor]:
        """Gains (B, P) of a batch per modality, as cosines in [-1, 1]."""
        stage, network = self.stage, self.stage.network
        seen = stage.see(batch)
        noisy, sigma, _ = stage.noisy_latent(seen)
        with torch.no_grad():
            text, pooled = network.text_encoder(stage.text_ids(batch))
            prepared = Prepared(seen.lr_latent, None, text, pooled)
            z = network.denoiser.embed_latent(seen.lr_latent)
            static = {name: z.new_full(z.shape[:2], stage.config.mean_weight) for name in seen.modalities}
            experts = network.fusion.prepare(z, seen.modalities, static)
            reads = network.fusion.read(experts, network.temperatures(sigma))
            fused = z + sum(stage.config.mean_weight * read for read in reads.values())
        fused.requires_grad_(True)
        predicted = network.predict_from(fused, noisy, prepared, sigma)
        loss = stage.image_losses(seen, noisy, sigma, predicted)["loss"]
        (gradient,) = torch.autograd.grad(loss, fused)
        # Per unit of length: both lengths have long tails, and a few patches would drown what the rest has to say.
        # The sign, which is what the theorem lives on, stays.
        return {name: -F.cosine_similarity(gradient, read, dim=-1) for name, read in reads.items()}

    def warm_up(self, batches: Iterable[GuidedBatch]) -> None:
        """Begin the running statistics: a mean that lags behind would let every weight drift to 0 or 1 meanwhile."""
        stacked = torch.cat([torch.stack(list(self.measure(batch).values())) for batch in batches], 1)
        self.mean, self.square = stacked.mean((1, 2)), stacked.square().mean((1, 2))

    def standardise(self, gains: dict[str, Tensor]) -> Tensor:
        """(M, B, P) with mean 0 and deviation 1 over the run. Needs `warm_up`."""
        stacked = torch.stack(list(gains.values()))
        self.mean = torch.lerp(stacked.mean((1, 2)), self.mean, MOMENTUM)
        self.square = torch.lerp(stacked.square().mean((1, 2)), self.square, MOMENTUM)
        deviation = (self.square - self.mean.square()).clamp_min(1e-24).sqrt()
        return (stacked - self.mean[:, None, None]) / deviation[:, None, None]


def join_quarters(gains: Tensor) -> Tensor:
    """(M, 4, P) of `training.guided.quarter`'s crops -> (M, 1, 4 P), the patches of the whole in rows."""
    side = math.isqrt(gains.shape[-1])
    quarters = gains.unflatten(2, (side, side)).unflatten(1, (2, 2))  # (M, vertical, horizontal, T, T)
    return quarters.permute(0, 1, 3, 2, 4).reshape(len(gains), 1, -1)


def router_losses(weights: Tensor, gains: Tensor, mean_weight: float, price: float = 1.0) -> dict[str, Tensor]:
    """Of weights and standardised gains (M, B, P). "gamma" is the covariance summed over modalities, to be large."""
    offset = weights - mean_weight
    gamma = (offset * gains).mean((1, 2))
    return {"loss": (0.5 * price * offset.square().mean((1, 2)) - gamma).sum(), "gamma": gamma.sum()}


@torch.no_grad()
def centre(stage: GuidedStage, batches: Iterable[GuidedBatch], mean_weight: float) -> None:
    """Sets the router's last biases so that the weights of `batches` have the mean `mean_weight` (0..1): E[w] = w_bar.

    The running mean of the gains is noisy, and divided by a small price its noise would decide every weight.
    """
    seen = [stage.see(batch) for batch in batches]
    for _ in range(8):  # the sigmoid is not linear: each round comes closer
        weights = torch.cat([expert_weights(stage, part).flatten(1) for part in seen], 1)
        stage.network.router.to_weights.bias -= 4 * (weights.mean(1) - mean_weight)


def expert_weights(stage: GuidedStage, seen: Seen) -> Tensor:
    """(M, B, T, T) as the denoiser gets them, with gradients of the router."""
    return torch.stack(list(stage.route(seen, seen.modalities).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_batch_arguments(parser)
    for name in ("profile", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    ImageLossWeights.add_arguments(parser)
    parser.add_argument("--price", type=float, default=0.1, help="of a weight's square distance from its mean")
    parser.add_argument("--reset", action="store_true", help="begin with a fresh router")
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    check_batch_arguments(parser, args)
    train(args)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    upscaler = Upscaler.load("compact", checkpoint=args.profile)
    network = upscaler.network.to(args.device)
    if args.reset:
        network.router = UncertaintyRouter(network.config.router).to(args.device)
    network.router.requires_grad_(True)
    config = GuidedConfig()
    judge = ImageLosses(ImageLossWeights.from_arguments(args), args.lpips, args.seed, args.device)
    stage = GuidedStage(network, upscaler.tokenizer, config, judge, args.seed)
    gains = MarginalGains(stage)
    dataset = open_batches(args, network.perception, network.config.segment_names)
    rng = np.random.default_rng(args.seed)

    def sample() -> GuidedBatch:
        return dataset.sample_batch(rng, 1, 2 * TOKENS, MARGIN).to(args.device)

    gains.warm_up(quarter(sample(), MARGIN) for _ in range(WARM_UP_BATCHES))

    def step(_: nn.Module) -> dict[str, Tensor]:
        batch = sample()
        measured = gains.measure(quarter(batch, MARGIN))
        weights = expert_weights(stage, stage.see(batch)).flatten(2)
        losses = router_losses(weights, join_quarters(gains.standardise(measured)), config.mean_weight, args.price)
        return losses | {"deviation": weights.std((1, 2)).mean()}

    loop = LoopConfig(
        num_steps=args.num_steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        weight_decay=0.01,
        warmup_steps=20,
        ema_decay=0.99,
        log_every=25,
    )
    trained = Trainer(network.router, loop, args.out, batch_size=4).run(step)
    network.router.load_state_dict(trained.state_dict())
    centre(stage, [sample() for _ in range(CENTRE_BATCHES)], config.mean_weight)
    save(args.out, network, upscaler.tokenizer)


if __name__ == "__main__":
    main()
