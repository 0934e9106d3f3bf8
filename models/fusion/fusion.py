"""The fusion h = z + sum_m w_m * E_m (Eq. 14) and the encoders that bring each modality to tokens."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from models.fusion.experts import FusionConfig, ModalityExpert, Projected
from models.fusion.temperature import TemperatureSchedule

PATCH = 16  # px of a rendered map under one token


class MapEncoder(nn.Module):
    """Rendered map (B, 3, H, W) in [0, 1] -> tokens (B, H/16 * W/16, D), f16 as the paper's VQGAN encoder.

    The paper takes a pretrained VQGAN encoder, one for all maps. This one is shared likewise, far smaller, and learned
    together with the experts. Whether the paper quantises its features is not said; here they are not.
    """

    def __init__(self, config: FusionConfig):
        super().__init__()
        width = config.map_width
        self.stem = nn.Conv2d(48, width, 1)
        self.down1 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(width, config.width, 3, stride=2, padding=1)

    def forward(self, rendered: Tensor) -> Tensor:
        x = F.silu(self.stem(F.pixel_unshuffle(rendered - 0.5, 4)))
        x = self.down2(F.silu(self.down1(x)))
        return x.flatten(2).transpose(1, 2)


class GridProjection(nn.Module):
    """Features on a grid (B, C, h, w) -> tokens (B, h * w, D), row by row."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.linear = nn.Linear(channels, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.flatten(2).transpose(1, 2))


@dataclass(frozen=True)
class PreparedFusion:
    """What does not change over the sampling steps of one image: z, its expert weights, and Q, K, V of every expert."""

    z: Tensor  # (B, P, D)
    expert_weights: dict[str, Tensor]  # (B, P) each
    projected: dict[str, Projected]


class ModalityFusion(nn.Module):
    """Experts, temperatures and encoders of the four visual modalities."""

    def __init__(self, config: FusionConfig, time_width: int):
        super().__init__()
        self.config = config
        # VQGAN is one encoder for all maps, and so is what follows it
        self.map_encoder = (
            GridProjection(config.map_channels, config.width) if config.map_channels else MapEncoder(config)
        )
        self.dino_projection = nn.Linear(config.dino_channels, config.width)
        self.experts = nn.ModuleDict({name: ModalityExpert(config) for name in config.modalities})
        self.temperature = TemperatureSchedule(time_width, len(config.modalities))

    def tokens(self, name: str, modality: Tensor) -> Tensor:
        """A modality as (B, L, D): DINO features (B, C, H/16, W/16), or a rendered RGB map (B, 3, H, W).

        With `map_channels` VQGAN's latents (B, map_channels, H/16, W/16) come in place of the map.
        """
        if name == "dino":
            return self.dino_projection(modality.flatten(2).transpose(1, 2))
        return self.map_encoder(modality)

    def grid(self, name: str, modality: Tensor) -> tuple[int, int]:
        """Rows and columns of a modality's tokens."""
        patch = 1 if name == "dino" or self.config.map_channels else PATCH
        return modality.shape[-2] // patch, modality.shape[-1] // patch

    def prepare(self, z: Tensor, modalities: dict[str, Tensor], expert_weights: dict[str, Tensor]) -> PreparedFusion:
        """Everything of Eq. 14 that is free of the timestep. What is off is in no dictionary."""
        projected = {
            name: self.experts[name].project(  # type: ignore[operator]
                z, self.tokens(name, modality), self.grid(name, modality)
            )
            for name, modality in modalities.items()
        }
        return PreparedFusion(z, {name: expert_weights[name] for name in projected}, projected)

    def temperatures(self, sigma: Tensor, time_embedding: Tensor) -> dict[str, Tensor]:
        values = self.temperature(sigma, time_embedding)
        return {name: values[:, m] for m, name in enumerate(self.config.modalities)}

    def read(self, prepared: PreparedFusion, temperatures: dict[str, Tensor]) -> dict[str, Tensor]:
        """E_m (B, P, D) of every modality that is on, before any weight."""
        return {
            name: self.experts[name].read(projected, temperatures[name])  # type: ignore[operator]
            for name, projected in prepared.projected.items()
        }

    def fuse(self, prepared: PreparedFusion, temperatures: dict[str, Tensor]) -> Tensor:
        """h (B, P, D). With every weight at zero it is z."""
        fused = prepared.z
        for name, read in self.read(prepared, temperatures).items():
            fused = fused + prepared.expert_weights[name][..., None] * read
        return fused
