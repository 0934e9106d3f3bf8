"""Stage 3b: router, experts, temperatures, text encoder and denoiser, on frozen coarse and perception networks.

python -m training.denoiser --pairs DIR --features DIR --coarse FILE --perception FILE --names FILE --out DIR
    [--init PROFILE] [--validation DIR --lpips FILE] [--minutes N]
"""

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.configs import COMPACT_DENOISER, VISUAL_MODALITIES, M3ESRConfig
from models.fusion.experts import FusionConfig
from models.modalities.edge import canny_edges
from models.modalities.perception import load_perception
from models.modalities.text import TextConfig, tokenize, train_tokenizer
from models.network import M3ESR, Predicted
from models.pipeline import Upscaler
from models.requests import UpscaleOptions
from models.routing.coarse import CoarseConfig
from training.guided import GuidedBatch, GuidedPairs
from training.image_losses import ImageLosses, ImageLossWeights, half_precision
from training.loop import LoopConfig, Trainer
from training.validation import Validation, to_tensor

PARTS = (*VISUAL_MODALITIES, "none", "routing", "temperature")
TOKENS, MARGIN = 12, 2  # a crop of 192 px, seen with 32 px around it
# words that callers write and the captioner does not, so that the tokenizer keeps them whole
EXTRA_CAPTIONS = (
    "a photograph of a person, a face, a portrait, an animal, a cat, a dog, a bird, a building, a street, a city",
    "trees, grass, leaves, flowers, water, sea, river, mountains, rocks, sky, clouds, snow, sand, food, text, a sign",
    "high quality, highly detailed, sharp focus, natural texture, low quality, blurry, noisy, jpeg artifacts, smooth",
)


@dataclass(frozen=True, kw_only=True)
class GuidedConfig:
    """What the denoiser is trained on and for."""

    end_probability: float = 0.6  # share of samples at sigma 1, where every sampling starts
    modality_dropout: float = 0.1  # each visual modality
    guidance_dropout: float = 0.1  # all visual modalities at once: the fused group is absent
    text_dropout: float = 0.1
    velocity_weight: float = 0.02
    unbiased_weight: float = 0.05
    mean_weight: float = 0.5  # w_bar of the theorem's unbiasedness constraint E[w] = w_bar
    # of PARTS. A modality: it is never given; "routing": every weight is mean_weight; "temperature": plain attention
    without: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "features", "coarse", "perception", "names", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from this profile's folder, with the networks named above")
    parser.add_argument("--detail", type=Path, help="detail network of training.coarse --base; absent: that of --init")
    parser.add_argument("--detail-rate", type=float, default=1.0, help="its share of the learning rate")
    parser.add_argument("--without", choices=PARTS, help="never use this part: a row of Table 3 (none: no modality)")
    parser.add_argument("--freeze-router", action="store_true", help="after training.router")
    parser.add_argument("--validation", type=Path, help="folder with hr/ and lr_real/")
    parser.add_argument("--validation-limit", type=int)
    ImageLossWeights.add_arguments(parser)
    parser.add_argument("--num-steps", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--num-layers", type=int, default=COMPACT_DENOISER.num_layers)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    dataset = GuidedPairs(args.pairs, args.features)
    args.out.mkdir(parents=True, exist_ok=True)
    network, tokenizer = build(args, dataset)
    judge = ImageLosses(ImageLossWeights.from_arguments(args), args.lpips, args.seed)
    stage = GuidedStage(network, tokenizer, GuidedConfig(without=args.without), judge, args.seed)
    rng = np.random.default_rng(args.seed)

    def step(_: nn.Module) -> dict[str, Tensor]:
        return stage.losses(dataset.sample_batch(rng, args.batch_size, TOKENS, MARGIN))

    validation = None
    if args.validation and args.lpips:
        validation = Validation(args.validation, args.lpips, args.out / "samples", limit=args.validation_limit)

    def validate(average: nn.Module) -> str:
        save(args.out, average, tokenizer)
        if validation is None:
            return "saved"
        upscaler = Upscaler(average, tokenizer, "compact")

        def upscale(lr_image: Tensor) -> Tensor:
            result = upscaler.upscale(lr_image[0].permute(1, 2, 0).numpy(), UpscaleOptions())
            return torch.from_numpy(result.sr_image).permute(2, 0, 1)[None]

        return validation(upscale)

    loop = LoopConfig(
        num_steps=args.num_steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        weight_decay=0.01,
        ema_decay=0.998,
        validate_minutes=8,
    )
    rates = {"detail.": args.detail_rate}
    trainer = Trainer(network, loop, args.out, args.batch_size, companion=judge.adversary, rates=rates)
    trained = trainer.run(step, validate)
    save(args.out, trained, tokenizer)


def build(args: argparse.Namespace, dataset: GuidedPairs) -> tuple[M3ESR, Tokenizer]:
    """The whole network around the coarse and perception checkpoints, which stay frozen, with a fitted codec."""
    perception = load_perception(args.perception)
    names = tuple(json.loads(args.names.read_text()))
    earlier = read_config(args.init / "compact.safetensors", M3ESRConfig) if args.init else None
    config = M3ESRConfig(
        coarse=read_config(args.coarse, CoarseConfig),
        perception=perception.config,
        # of the two readings of the query (Eq. 2, Eq. 15) the one in which the modality's own features come through
        fusion=FusionConfig(dino_channels=perception.config.dino_channels, query="patch", is_local=True),
        denoiser=replace(COMPACT_DENOISER, num_layers=args.num_layers),
        segment_names=names,
        # of training.reliability: frozen here, it knows nothing of this stage's networks
        reliability=earlier.reliability if earlier else None,
        detail=read_config(args.detail, CoarseConfig) if args.detail else earlier.detail if earlier else None,
    )
    network = M3ESR(config)
    network.coarse.load_state_dict(read_tensors(args.coarse))
    network.perception.load_state_dict(perception.state_dict())
    network.denoiser.reset_for_training()
    if args.init:
        network.load_state_dict(learned_tensors(args.init, config), strict=False)
        shutil.copy(args.init / "tokenizer.json", args.out)
    else:
        fit_codec(network, dataset)
    if network.detail is not None and args.detail:
        network.detail.load_state_dict(read_tensors(args.detail))
    for part in (network.coarse, network.detail):
        if part is not None:
            part.to(memory_format=torch.channels_last)
    frozen = [network.coarse, network.perception, network.reliability, network.router if args.freeze_router else None]
    for part in frozen:
        if part is not None:
            part.requires_grad_(False)
    vocabulary = args.out / "tokenizer.json"
    if not vocabulary.exists():
        train_tokenizer([*dataset.all_captions(), *EXTRA_CAPTIONS * 50], TextConfig()).save(str(vocabulary))
    return network, Tokenizer.from_file(str(vocabulary))


def learned_tensors(profile: Path, config: M3ESRConfig) -> dict[str, Tensor]:
    """What this stage learned in an earlier run: everything but the coarse and the perception network.

    Experts of another reading begin anew: their weights would mean something else.
    """
    path = profile / "compact.safetensors"
    fresh = ["coarse.", "perception."]
    if read_config(path, M3ESRConfig).fusion != config.fusion:
        fresh.append("fusion.experts.")
    return {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(tuple(fresh))}


def fit_codec(network: M3ESR, dataset: GuidedPairs) -> None:
    """PCA and statistics of the latents on 96 photographs of the training set: closed form, seconds."""
    chosen = dataset.photographs[:: max(1, len(dataset.photographs) // 96)]
    hr = torch.cat([to_tensor(dataset.hr[i]) for i in chosen])
    lr = torch.cat([to_tensor(dataset.draws[0][0][i]) for i in chosen])
    with torch.inference_mode():
        upscaled = torch.cat([network.estimate(image)[0] for image in lr.split(1)])
        network.codec.fit(hr, upscaled)


def save(folder: Path, network: nn.Module, tokenizer: Tokenizer) -> None:
    """Half precision on disk: the difference to float32 is far below a step of 8-bit output."""
    save_checkpoint(folder / "compact.safetensors", network.state_dict(), network.config, torch.float16)
    tokenizer.save(str(folder / "tokenizer.json"))


@dataclass(frozen=True)
class Seen:
    """A batch after the frozen parts, T tokens a side, with a margin of m = MARGIN where it says so."""

    lr_image: Tensor  # (B, 3, 4(T + 2m), .), margin and all: the router looks around
    hr_image: Tensor  # (B, 3, 16T, 16T)
    upscaled: Tensor  # (B, 3, 16T, 16T), Up-Scale(x) of Eq. 13
    coarse_sr: Tensor  # (B, 3, 16T, 16T)
    uncertainty_map: Tensor  # (B, 1, T + 2m, .), likewise
    lr_latent: Tensor  # (B, C, 2T, 2T), normalised
    start: Tensor  # (B, C, 2T, 2T), whitened residual of the coarse image
    clean: Tensor  # (B, C, 2T, 2T), whitened residual of the HR image
    modalities: dict[str, Tensor]


class GuidedStage:
    """Losses of one batch: the velocity of the flow, and the image that one step from its sigma would give."""

    def __init__(self, network: M3ESR, tokenizer: Tokenizer, config: GuidedConfig, judge: ImageLosses, seed: int):
        self.network, self.tokenizer, self.config, self.judge = network, tokenizer, config, judge
        self.generator = torch.Generator().manual_seed(seed)
        std = network.codec.residual_std
        # components that carry more of the picture count more; whitening alone would spend the network on noise
        self.channel_weight = (std / std.mean())[:, None, None]

    def flip(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    @torch.no_grad()
    def see(self, batch: GuidedBatch) -> Seen:
        """Everything that the frozen parts make of a batch, margins cut but for the router's."""
        network, codec = self.network, self.network.codec
        with half_precision():  # the batch brings its own margin
            upscaled, coarse_sr, uncertainty_map = network.estimate(batch.lr_image, margin=0)
        lr_latent, start = network.latents(upscaled, coarse_sr)
        clean = codec.to_residual(codec.encode(batch.hr_image), codec.encode(upscaled))
        modalities = {
            "segmentation": batch.segmentation,
            "depth": batch.depth,
            "edge": inner(canny_edges(coarse_sr), 16).expand(-1, 3, -1, -1),
            "dino": batch.dino,
        }
        return Seen(
            lr_image=batch.lr_image,
            hr_image=inner(batch.hr_image, 16),
            upscaled=inner(upscaled, 16),
            coarse_sr=inner(coarse_sr, 16),
            uncertainty_map=uncertainty_map,
            lr_latent=inner(lr_latent, 2),
            start=inner(start, 2),
            clean=inner(clean, 2),
            modalities=modalities,
        )

    def noisy_latent(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """(noisy latent, its sigma (B,), the velocity of its flow): many at sigma 1, the rest anywhere."""
        sigma = torch.rand(len(seen.start), generator=self.generator)
        ends = torch.rand(len(seen.start), generator=self.generator) < self.config.end_probability
        sigma = torch.where(ends, torch.ones(()), sigma)
        noise = torch.randn(seen.start.shape, generator=self.generator)
        source = seen.start + self.network.config.sampler.noise_scale * noise
        level = sigma[:, None, None, None]
        return (1 - level) * seen.clean + level * source, sigma, source - seen.clean

    def image_losses(self, seen: Seen, noisy: Tensor, sigma: Tensor, predicted: Predicted) -> dict[str, Tensor]:
        """Losses of the image that one step from sigma to 0 would give."""
        codec, lr_image = self.network.codec, inner(seen.lr_image, 4)
        end = noisy - sigma[:, None, None, None] * predicted.velocity
        if self.network.detail is None:
            sr_image = seen.coarse_sr + codec.decode(codec.from_residual(end - seen.start))
        else:
            changes = noisy - seen.start, end - seen.start
            with half_precision():
                tokens = predicted.tokens
                sr_image = self.network.draw(lr_image, seen.upscaled, seen.coarse_sr, changes, tokens, margin=0).float()
        return self.judge(sr_image, seen.hr_image, lr_image)

    def text_ids(self, batch: GuidedBatch) -> Tensor:
        captions = ["" if self.flip(self.config.text_dropout) else caption for caption in batch.captions]
        return tokenize(self.tokenizer, captions, self.network.config.text)

    def losses(self, batch: GuidedBatch) -> dict[str, Tensor]:
        seen, config = self.see(batch), self.config
        modalities = self.drop(seen.modalities)
        noisy, sigma, target = self.noisy_latent(seen)
        with half_precision():
            weights = self.route(seen, modalities) if modalities else {}
            temperature = 1.0 if config.without == "temperature" else None
            ids = self.text_ids(batch)
            prepared = self.network.prepare(seen.lr_latent, modalities, weights, ids, temperature=temperature)
            predicted = self.network.predict(noisy, prepared, sigma)
        losses = self.image_losses(seen, noisy, sigma, predicted)
        losses["velocity"] = (self.channel_weight * (predicted.velocity - target).square()).mean()
        losses["loss"] = losses["loss"] + config.velocity_weight * losses["velocity"]
        # what there was to gain, for the log
        losses["coarse"] = (seen.coarse_sr - seen.hr_image).abs().mean()
        if weights:
            means = torch.stack([w.mean() for w in weights.values()])
            losses["unbiased"] = (means - config.mean_weight).square().sum()
            losses["loss"] = losses["loss"] + config.unbiased_weight * losses["unbiased"]
        return losses

    def route(self, seen: Seen, modalities: dict[str, Tensor]) -> dict[str, Tensor]:
        """Expert weights (B, T, T). The router looks at the margin too; maps have none."""
        routed = self.network.router.logits(seen.lr_image, seen.uncertainty_map)
        logits = {name: inner(routed[name], 1) for name in modalities}
        lr_image, tokens = inner(seen.lr_image, 4), None
        if self.network.reliability is not None:
            with torch.no_grad():
                tokens = self.network.perception(lr_image).tokens
        weights = self.network.weigh(logits, lr_image, modalities, tokens)
        if self.config.without == "routing":
            return {name: torch.full_like(weight, self.config.mean_weight) for name, weight in weights.items()}
        return weights

    def drop(self, modalities: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is left of the modalities after dropout, and without the one that is never given."""
        if self.flip(self.config.guidance_dropout) or self.config.without == "none":
            return {}
        kept = [name for name in VISUAL_MODALITIES if not self.flip(self.config.modality_dropout)]
        return {name: modalities[name] for name in kept if name != self.config.without}


def inner(image: Tensor, cells: int) -> Tensor:
    """Cuts the margin of (B, C, H, W) with `cells` values per token."""
    border = MARGIN * cells
    return image[..., border:-border, border:-border]


if __name__ == "__main__":
    main()
