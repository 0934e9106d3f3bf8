"""One region of an image: routed as a whole, denoised in overlapping tiles that are blended at every step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.configs import SamplerConfig
from models.denoising.sampling import euler, guide
from models.network import M3ESR, Predicted, Prepared
from models.requests import Intervention
from models.tiling import BlendAccumulator, Tile, plan_tiles

CELLS = 2  # latent cells per token side


@dataclass(frozen=True)
class Crops:
    """The tiles of a region as one batch, ready for every step."""

    plan: tuple[Tile, ...]  # in tokens
    rows: int
    columns: int
    overlap: int
    conditional: Prepared
    unconditional: Prepared | None  # only with classifier-free guidance
    expert_weights: dict[str, Tensor]  # (1, rows, columns) each, as they were used, in [0, 1]

    def blend(self, values: Tensor, scale: int) -> Tensor:
        accumulator = BlendAccumulator(self.plan, self.rows, self.columns, self.overlap, scale)
        for tile, value in zip(self.plan, values.split(1), strict=True):
            accumulator.add(tile, value)
        return accumulator.result()


@dataclass(frozen=True)
class Region:
    lr_image: Tensor  # (1, 3, 4 rows, 4 columns)
    noise: Tensor  # (1, C, 2 rows, 2 columns)
    text_ids: Tensor  # (1, L)
    null_ids: Tensor  # (1, L), guided away from when cfg_scale > 1

    def prepare(
        self,
        network: M3ESR,
        upscaled: Tensor,
        uncertainty_map: Tensor,
        modalities: dict[str, Tensor],
        tokens: Tensor | None,
        strengths: dict[str, float],
        cfg_scale: float,
        intervention: Intervention = Intervention(),  # noqa: B008 (frozen)
        expert_weights: dict[str, Tensor] | None = None,
    ) -> Crops:
        """Routes the region as a whole, cuts it into tiles of the training size, projects Q, K, V: all of it once.

        modalities, tokens: of `M3ESR.render`; None without modalities.
        expert_weights: (1, rows, columns) each in place of the router's, for experiments that need their gradient.
        """
        sampler = network.config.sampler
        rows, columns = self.lr_image.shape[-2] // 4, self.lr_image.shape[-1] // 4
        overlap = sampler.overlap // CELLS
        plan = plan_tiles(rows, columns, sampler.tile // CELLS, overlap, even=True)

        def cut(image: Tensor) -> Tensor:
            """(1, C, H, W) -> (tiles, C, ., .), whatever the pixels per token."""
            cells = image.shape[-2] // rows
            return torch.cat([crop(image, tile, cells) for tile in plan])

        lr_latent = cut(network.codec.normalise(network.codec.encode(upscaled)))
        # the router sees more than a tile: its weights have no borders where the tiles have
        routed = expert_weights
        if routed is None:
            routed = {}
            if tokens is not None:
                routed = network.route(self.lr_image, uncertainty_map, modalities, tokens)
        weights = {name: hold(routed[name], name, intervention) for name in modalities}
        conditional = network.prepare(
            lr_latent,
            {name: cut(modality) for name, modality in modalities.items()},
            {name: cut(weight[:, None])[:, 0] for name, weight in weights.items()},
            self.text_ids.expand(len(plan), -1),
            strengths,
            intervention.temperature,
        )
        unconditional = None
        if cfg_scale > 1:
            # whether the modalities are dropped with the text is not said; they are kept, as DiT4SR keeps L
            text, pooled = network.text_encoder(self.null_ids.expand(len(plan), -1))
            unconditional = replace(conditional, text_embeddings=text, pooled=pooled)
        return Crops(plan, rows, columns, overlap, conditional, unconditional, weights)


def hold(weights: Tensor, name: str, intervention: Intervention) -> Tensor:
    """The router's weights (1, rows, columns), or the constant that an intervention names for the modality."""
    if intervention.expert_weights is None:
        return weights
    return torch.full_like(weights, intervention.expert_weights[name])


def crop(image: Tensor, tile: Tile, cells: int) -> Tensor:
    """The part of (B, C, H, W) under a tile planned in tokens, `cells` pixels or latent cells each."""
    top, left = tile.top * cells, tile.left * cells
    return image[..., top : top + tile.height * cells, left : left + tile.width * cells]


def denoise(
    network: M3ESR,
    region: Region,
    crops: Crops,
    upscaled: Tensor,
    coarse_sr: Tensor,
    uncertainty_map: Tensor,
    sigmas: Tensor,
    cfg_scale: float,
    on_step: Callable[[int], None],
) -> Tensor:
    """The SR image (1, 3, 16 rows, 16 columns) that the flow leads to, as the networks made it; sigmas end with 0.

    The flow starts from the coarse image plus noise, not from pure noise: what the coarse network knows need not be
    generated again, so few steps suffice. Its state is a whitened residual (1, C, h, w) against Up-Scale(x).
    """
    lr_latent = network.codec.encode(upscaled)
    start = network.codec.to_residual(network.codec.encode(coarse_sr), lr_latent)
    noisy = start + noise_deviation(network.config.sampler, uncertainty_map) * region.noise
    mirror = network.look_in_mirror(region.lr_image, coarse_sr)
    drawn: Tensor | None = None

    def velocity(noisy_latent: Tensor, sigma: float) -> Tensor:
        nonlocal drawn
        predicted = predict(network, crops, noisy_latent, sigma, cfg_scale)
        if network.detail is None:
            return predicted.velocity
        changes = noisy_latent - start, noisy_latent - sigma * predicted.velocity - start
        drawn = network.draw(region.lr_image, upscaled, coarse_sr, changes, predicted.tokens, mirror=mirror)
        clean = network.codec.to_residual(network.codec.encode(drawn), lr_latent)
        return (noisy_latent - clean) / sigma

    end = euler(velocity, noisy, sigmas, lambda step, _: on_step(step))
    # the last step ends at the latent of what was drawn: the picture itself has what the latent cannot hold
    change = network.codec.decode(network.codec.from_residual(end - start)) if drawn is None else drawn - coarse_sr
    return coarse_sr + network.config.sampler.flow_share * change


def predict(network: M3ESR, crops: Crops, noisy_latent: Tensor, sigma: float, cfg_scale: float) -> Predicted:
    """The transformer on every tile of a region's noisy latent, guided if asked for, and blended."""
    tiles = torch.cat([crop(noisy_latent, tile, CELLS) for tile in crops.plan])
    level = torch.full((len(tiles),), sigma, device=tiles.device)
    predicted = network.predict(tiles, crops.conditional, level)
    velocity, tokens = predicted.velocity, predicted.tokens
    if crops.unconditional is not None:
        other = network.predict(tiles, crops.unconditional, level)
        velocity, tokens = guide(other.velocity, velocity, cfg_scale), guide(other.tokens, tokens, cfg_scale)
    return Predicted(crops.blend(velocity, CELLS), crops.blend(tokens, 1))


def noise_deviation(sampler: SamplerConfig, uncertainty_map: Tensor) -> Tensor:
    """Deviation of the starting noise per latent cell, (1, 1, 2 rows, 2 columns), from U (1, 1, rows, columns).

    Where the coarse image equals plain upscaling there is nothing to invent: flat areas start without noise and stay
    flat. Training gives `noise_scale` everywhere.
    """
    share = uncertainty_map / (uncertainty_map + sampler.noise_reference)
    return sampler.noise_scale * share.repeat_interleave(CELLS, -1).repeat_interleave(CELLS, -2)
