"""The losses of `training.denoiser`: velocity of the flow, and the image that one step from its sigma would give."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.configs import VISUAL_MODALITIES
from models.modalities.edge import canny_edges
from models.modalities.text import tokenize
from models.network import M3ESR, Predicted
from training.edges import canny_on_device
from training.guided import GuidedBatch
from training.image_losses import ImageLosses, half_precision
from training.stream import to_device

PARTS = (*VISUAL_MODALITIES, "none", "routing", "temperature")
MARGIN = 2  # tokens around a crop, which the router and the convolutions see


@dataclass(frozen=True, kw_only=True)
class GuidedConfig:
    """What the denoiser is trained on and for."""

    end_probability: float = 0.6  # share of samples at sigma 1, where every sampling starts
    modality_dropout: float = 0.1  # each visual modality
    guidance_dropout: float = 0.1  # all visual modalities at once: the fused group is absent. 0: one at least is left
    text_dropout: float = 0.1
    velocity_weight: float = 0.02
    unbiased_weight: float = 0.05
    mean_weight: float = 0.5  # w_bar of the theorem's unbiasedness constraint E[w] = w_bar
    # of PARTS. A modality: it is never given; "routing": every weight is mean_weight; "temperature": plain attention
    without: str | None = None


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

    def __init__(
        self,
        network: M3ESR,
        tokenizer: Tokenizer,
        config: GuidedConfig,
        judge: ImageLosses,
        seed: int,
        coarse_judge: ImageLosses | None = None,
    ):
        """`coarse_judge`: the coarse network learns too, from these losses alone; absent: it is frozen."""
        self.network, self.tokenizer, self.config, self.judge = network, tokenizer, config, judge
        self.coarse_judge = coarse_judge
        self.generator = torch.Generator().manual_seed(seed)  # of decisions; noise is drawn where the network is
        device = network.codec.residual_std.device
        self.noise_generator = torch.Generator(device).manual_seed(seed)
        std = network.codec.residual_std
        # components that carry more of the picture count more; whitening alone would spend the network on noise
        self.channel_weight = (std / std.mean())[:, None, None]

    def flip(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    def coarse_image(self, batch: GuidedBatch) -> Tensor:
        """(B, 3, 16(T + 2m), .), not clamped; the batch brings the network's margin."""
        with half_precision(batch.lr_image.device):
            return self.network.coarse(batch.lr_image, margin=0).float()

    @torch.no_grad()
    def see(self, batch: GuidedBatch, coarse_sr: Tensor | None = None) -> Seen:
        """Everything that the frozen parts make of a batch, margins cut but for the router's.

        coarse_sr: of `coarse_image`, if it is there already.
        """
        network, codec = self.network, self.network.codec
        coarse_sr = (self.coarse_image(batch) if coarse_sr is None else coarse_sr).clamp(0, 1)
        upscaled, coarse_sr, uncertainty_map = network.estimate(batch.lr_image, coarse_sr=coarse_sr)
        lr_latent, start = network.latents(upscaled, coarse_sr)
        clean = codec.to_residual(codec.encode(batch.hr_image), codec.encode(upscaled))
        modalities = {
            "segmentation": batch.segmentation,
            "depth": batch.depth,
            "edge": inner(find_edges(coarse_sr), 16).expand(-1, 3, -1, -1),
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
        sigma, chance = torch.rand(
            2, len(seen.start), generator=self.noise_generator, device=seen.start.device
        ).unbind()
        sigma = torch.where(chance < self.config.end_probability, torch.ones_like(sigma), sigma)
        noise = torch.randn(seen.start.shape, generator=self.noise_generator, device=seen.start.device)
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
            with half_precision(lr_image.device):
                tokens = predicted.tokens
                sr_image = self.network.draw(lr_image, seen.upscaled, seen.coarse_sr, changes, tokens, margin=0).float()
        return self.judge(sr_image, seen.hr_image, lr_image)

    def text_ids(self, batch: GuidedBatch) -> Tensor:
        captions = ["" if self.flip(self.config.text_dropout) else caption for caption in batch.captions]
        return to_device(tokenize(self.tokenizer, captions, self.network.config.text), batch.lr_image.device)

    def losses(self, batch: GuidedBatch) -> dict[str, Tensor]:
        config, coarse_sr = self.config, self.coarse_image(batch) if self.coarse_judge is not None else None
        seen = self.see(batch, coarse_sr)
        modalities = self.drop(seen.modalities)
        noisy, sigma, target = self.noisy_latent(seen)
        with half_precision(batch.lr_image.device):
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
        if coarse_sr is not None:
            learned = self.coarse_losses(coarse_sr, seen)
            losses["loss"] = losses["loss"] + learned.pop("loss")
            losses |= {f"coarse {name}": value for name, value in learned.items()}
        return losses

    def coarse_losses(self, coarse_sr: Tensor, seen: Seen) -> dict[str, Tensor]:
        """What the coarse network learns from; nothing else of this stage reaches it."""
        assert self.coarse_judge is not None
        return self.coarse_judge(inner(coarse_sr, 16), seen.hr_image, inner(seen.lr_image, 4))

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
        given = [name for name in VISUAL_MODALITIES if name != self.config.without]
        kept = [name for name in given if not self.flip(self.config.modality_dropout)]
        if not kept and not self.config.guidance_dropout:
            kept = given
        return {name: modalities[name] for name in kept}


def find_edges(image: Tensor) -> Tensor:
    """The edge modality, (B, 1, H, W): on a GPU without leaving it."""
    return canny_on_device(image) if image.is_cuda else canny_edges(image)


def inner(image: Tensor, cells: int) -> Tensor:
    """Cuts the margin of (B, C, H, W) with `cells` values per token."""
    border = MARGIN * cells
    return image[..., border:-border, border:-border]
