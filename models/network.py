"""M3ESR as one network: figure 3 of the paper as the steps of a forward.

Dimension key, the same in every file: B batch  C channels  H W pixels  h w latent grid  P LR patches  L tokens of one
modality  M modalities  D width  N heads  K head width
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.codec import LappedCodec
from models.configs import M3ESRConfig
from models.denoising.transformer import DiffusionTransformer
from models.fusion.fusion import ModalityFusion, PreparedFusion
from models.modalities.edge import canny_edges
from models.modalities.perception import PerceptionNet
from models.modalities.rendering import render_depth, render_segmentation
from models.modalities.text import TextEncoder
from models.precision import REDUCED, reduce_weights
from models.routing.coarse import MARGIN, CoarseNetwork, missed, upscale
from models.routing.reliability import ModalityReliability
from models.routing.router import UncertaintyRouter
from models.routing.uncertainty import estimate_uncertainty

SCALE = 4
GUIDES = 3  # images that the detail network is shown: see `guide_images`
NOISE_RADIUS = 8  # LR pixels around one, over which its noise is measured
GUIDE_GAIN = 4.0  # changes of an image are small beside the LR image that they are shown with


@dataclass(frozen=True)
class Predicted:
    """What the transformer says of one noisy latent."""

    velocity: Tensor  # (B, C, h, w)
    tokens: Tensor  # (B, D, h/2, w/2), the features behind it


@dataclass(frozen=True)
class Prepared:
    """One crop, ready to be denoised: all that does not change over the steps."""

    lr_latent: Tensor
    fusion: PreparedFusion | None  # None: no visual modality, the fused group is absent
    text_embeddings: Tensor
    pooled: Tensor
    temperature: float | None = None  # instead of Eq. 15, for experiments


@dataclass(frozen=True)
class Mirror:
    """What the detail network is shown of the mirror image, in the place of the image itself."""

    coarse_sr: Tensor  # (B, 3, 4H, 4W): the coarse image of the mirrored LR image, turned back
    share: Tensor  # (B, 1, 4H, 4W), in [0, 1]: of the second view in the picture


class M3ESR(nn.Module):
    """The parts of the paper, put together; each can be built and tested alone."""

    def __init__(self, config: M3ESRConfig):
        super().__init__()
        self.config = config
        self.codec = LappedCodec(config.codec)
        self.coarse = CoarseNetwork(config.coarse)
        self.perception = PerceptionNet(config.perception)
        self.router = UncertaintyRouter(config.router)
        self.denoiser = DiffusionTransformer(config.denoiser)
        self.detail = CoarseNetwork(config.detail) if config.detail is not None else None
        self.fusion = ModalityFusion(config.fusion, time_width=config.denoiser.width)
        self.text_encoder = TextEncoder(config.text)
        self.reliability = ModalityReliability(config.reliability) if config.reliability is not None else None
        self.compute_dtype = torch.float32

    def use_dtype(self, dtype: torch.dtype) -> "M3ESR":
        """Lets `REDUCED` parts compute in `dtype`, for inference; what leaves them is float32. Returns itself."""
        self.compute_dtype = dtype
        for name, part in self.named_modules():
            if name in REDUCED:
                reduce_weights(part, dtype)
        return self

    def reduced(self) -> AbstractContextManager[object]:
        """While entered, matrix products and convolutions compute in `compute_dtype`.

        With float32 what surrounds it stands: training brings an autocast of its own.
        """
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.codec.basis.device.type, self.compute_dtype)

    def estimate(
        self, lr_image: Tensor, margin: int = MARGIN, coarse_sr: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Up-Scale(x), the coarse SR image (both (B, 3, 4H, 4W)) and U(x) (B, 1, H/4, W/4) of Eq. 13.

        `margin`: see `CoarseNetwork.forward`. `coarse_sr`: of `coarse_image`, if it is there already.
        """
        coarse_sr = self.coarse_image(lr_image, margin) if coarse_sr is None else coarse_sr
        upscaled = upscale(lr_image, SCALE)
        return upscaled, coarse_sr, estimate_uncertainty(coarse_sr, upscaled)

    def coarse_image(self, lr_image: Tensor, margin: int = MARGIN) -> Tensor:
        """(B, 3, H, W) -> (B, 3, 4H, 4W) in [0, 1]."""
        with self.reduced():
            return self.coarse(lr_image, margin).clamp(0, 1)

    def latents(self, upscaled: Tensor, coarse_sr: Tensor) -> tuple[Tensor, Tensor]:
        """(normalised LR latent, whitened residual of the coarse image against it): where the flow starts."""
        lr_latent = self.codec.encode(upscaled)
        return self.codec.normalise(lr_latent), self.codec.to_residual(self.codec.encode(coarse_sr), lr_latent)

    def render(self, lr_image: Tensor, coarse_sr: Tensor, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor]:
        """The modalities asked for, in the form that the fusion takes, and the tokens (B, D, H/4, W/4) behind them.

        Segmentation, depth and DINO see the LR image, on which they were trained; Canny sees the coarse image, whose
        edges are not those of noise.
        """
        seen = self.perception(lr_image)
        size = (coarse_sr.shape[-2], coarse_sr.shape[-1])
        rendered = {}
        if "segmentation" in names:
            rendered["segmentation"] = resize_map(render_segmentation(seen.segmentation), size)
        if "depth" in names:
            rendered["depth"] = resize_map(render_depth(seen.depth), size)
        if "edge" in names:
            rendered["edge"] = canny_edges(coarse_sr).expand(-1, 3, -1, -1)
        if "dino" in names:
            rendered["dino"] = seen.dino
        return rendered, seen.tokens

    def route(
        self, lr_image: Tensor, uncertainty_map: Tensor, modalities: dict[str, Tensor], tokens: Tensor
    ) -> dict[str, Tensor]:
        """Expert weights (B, H/4, W/4) in [0, 1] of the modalities given; they and the tokens are those of `render`.

        The paper's router sees the LR image and U alone. Ours, not the paper's: with `M3ESRConfig.reliability` what
        the maps themselves are worth joins its logits.
        """
        with self.reduced():
            routed = self.router.logits(lr_image, uncertainty_map)
        return self.weigh(routed, lr_image, modalities, tokens)

    def weigh(
        self, logits: dict[str, Tensor], lr_image: Tensor, modalities: dict[str, Tensor], tokens: Tensor | None
    ) -> dict[str, Tensor]:
        """Router's logits (B, H/4, W/4) -> weights of the modalities given; tokens are read with reliability only."""
        joined = {name: logits[name].float() for name in modalities}
        if self.reliability is not None:
            assert tokens is not None
            for name, offset in self.reliability.offsets(lr_image, tokens, modalities).items():
                joined[name] = joined[name] + offset
        return {name: logit.sigmoid() for name, logit in joined.items()}

    def prepare(
        self,
        lr_latent: Tensor,
        modalities: dict[str, Tensor],
        expert_weights: dict[str, Tensor],
        text_ids: Tensor,
        strengths: dict[str, float] | None = None,
        temperature: float | None = None,
    ) -> Prepared:
        """Projects the modalities given, once per crop, with their expert weights (B, H/4, W/4) from the router.

        `strengths` scale what a modality contributes beside its weight; `temperature` stands in for Eq. 15 if given.
        """
        text_embeddings, pooled = self.text_encoder(text_ids)
        if not modalities:
            return Prepared(lr_latent, None, text_embeddings, pooled)
        scaled = {name: expert_weights[name].flatten(1) * (strengths or {}).get(name, 1.0) for name in modalities}
        with self.reduced():
            fusion = self.fusion.prepare(self.denoiser.embed_latent(lr_latent), modalities, scaled)
        return Prepared(lr_latent, fusion, text_embeddings, pooled, temperature)

    def predict(self, noisy_latent: Tensor, prepared: Prepared, sigma: Tensor) -> Predicted:
        """The transformer's velocity at sigma (B,) in [0, 1] and the features it comes from."""
        fused, temperatures = None, self.temperatures(sigma, prepared.temperature) if prepared.fusion else {}
        if prepared.fusion is not None:
            with self.reduced():
                fused = self.fusion.fuse(prepared.fusion, temperatures)
        return self.predict_from(fused, noisy_latent, prepared, sigma)

    def predict_from(self, fused: Tensor | None, noisy_latent: Tensor, prepared: Prepared, sigma: Tensor) -> Predicted:
        """`predict` with these fused tokens (B, P, D) in place of the fusion's, or none."""
        text, pooled = prepared.text_embeddings, prepared.pooled
        with self.reduced():
            tokens = self.denoiser.features(noisy_latent, prepared.lr_latent, text, pooled, 1000 * sigma, fused)
            velocity = self.denoiser.to_latent(tokens, noisy_latent)
        grid = self.denoiser.pos_embed.grid(noisy_latent.shape[-2], noisy_latent.shape[-1])
        return Predicted(velocity.float(), tokens.float().transpose(1, 2).unflatten(2, grid))

    def draw(
        self,
        lr_image: Tensor,
        upscaled: Tensor,
        coarse_sr: Tensor,
        changes: tuple[Tensor, Tensor],
        tokens: Tensor,
        margin: int = MARGIN,
        mirror: Mirror | None = None,
    ) -> Tensor:
        """The clean image (B, 3, 4H, 4W) that a noisy latent is predicted to come from. Needs `config.detail`.

        Ours, not the paper's, whose large transformer and VAE need no such help: 192 features per token of 16 px are
        fewer than the numbers that they would have to say. A U-Net on the LR grid, with the transformer's tokens in
        its lowest level, draws the pixels; the step's velocity then leads to the latent of this image.

        Args:
            changes: residuals (B, C, h, w) against the coarse image's: of the noisy latent, and of the clean latent
                that the transformer's own velocity leads to.
            tokens: (B, D, H/4, W/4) of `predict`.
            margin: see `CoarseNetwork.forward`.
            mirror: the second view, of `look_in_mirror`; training takes none.
        """
        detail = self.detail
        if detail is None:
            raise ValueError("this network was built without config.detail")
        decoded = [self.codec.decode(self.codec.from_residual(change)) for change in changes]

        def view(coarse: Tensor, turned: Callable[[Tensor], Tensor]) -> Tensor:
            guides = guide_images(coarse - upscaled, *decoded)
            return turned(detail(turned(lr_image), margin, turned(guides), turned(tokens)).float())

        with self.reduced():
            sr_image = view(coarse_sr, lambda image: image)
            if mirror is None:
                return sr_image
            return torch.lerp(sr_image, view(mirror.coarse_sr, point_mirror), mirror.share)

    def look_in_mirror(self, lr_image: Tensor, coarse_sr: Tensor) -> Mirror | None:
        """The second view of an LR image (B, 3, H, W), given its coarse image; None if the sampler has no share for it.

        A quarter of the geometric self-ensemble (Timofte et al. 2016), ours and not the paper's: what both views agree
        on stays, what either invents is weakened. Its share grows with the noise, which is what the coarse image leaves
        out of the LR image: of a clean one little is invented, and the mean would only soften it.
        """
        sampler = self.config.sampler
        if self.detail is None or not sampler.mirror_share:
            return None
        mirrored = point_mirror(self.coarse_image(point_mirror(lr_image)))
        power = missed(coarse_sr, lr_image).square().mean(1, keepdim=True)
        variance = F.avg_pool2d(power, 2 * NOISE_RADIUS + 1, 1, NOISE_RADIUS, count_include_pad=False)
        share = sampler.mirror_share * variance / (variance + sampler.mirror_noise**2)
        size = (coarse_sr.shape[-2], coarse_sr.shape[-1])
        return Mirror(mirrored, F.interpolate(share, size=size, mode="bilinear", align_corners=False))

    def temperatures(self, sigma: Tensor, constant: float | None = None) -> dict[str, Tensor]:
        """tau_m (B,) per modality at sigma (B,), Eq. 15; or `constant` in its place."""
        if constant is not None:
            return {name: torch.full_like(sigma, constant) for name in self.config.fusion.modalities}
        with self.reduced():
            embedding = self.denoiser.time_embedding(1000 * sigma)
        return self.fusion.temperatures(sigma, embedding.float())


def point_mirror(image: Tensor) -> Tensor:
    """(B, C, H, W) mirrored at its centre, which is a turn by 180 degrees."""
    return image.flip((-1, -2))


def guide_images(coarse: Tensor, noisy: Tensor | None = None, draft: Tensor | None = None) -> Tensor:
    """(B, 3 GUIDES, H, W): the coarse image less Up-Scale(x); what is noisy and what is drafted, less the coarse."""
    absent = torch.zeros_like(coarse)
    return GUIDE_GAIN * torch.cat([coarse, absent if noisy is None else noisy, absent if draft is None else draft], 1)


def resize_map(rendered: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(rendered.shape[-2:]) == size:
        return rendered
    return F.interpolate(rendered, size=size, mode="bilinear", align_corners=False)
