"""One expert per modality: cross-attention between LR patches and modality tokens, with a temperature (Eq. 15)."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Sizes of experts and map encoder, and which reading of the query they follow."""

    width: int = 192
    num_heads: int = 3
    modalities: tuple[str, ...] = ("segmentation", "depth", "edge", "dino")
    query: Literal["modality", "patch"] = "modality"  # literal Eq. 15 | Eq. 2
    map_width: int = 64  # of the encoder that turns RGB maps into tokens
    map_channels: int = 0  # of the latents that come in place of RGB maps (VQGAN f16: 256); 0: maps, and the encoder
    dino_channels: int = 64


class ModalityExpert(nn.Module):
    """E_m: LR patches z (B, P, D) and modality tokens (B, L, D) -> what the modality has to say per patch (B, P, D).

    Eq. 15 takes queries from the modality and keys and values from z, which gives L rows; Eq. 14 adds one row per LR
    patch, so it type-checks only where L = P, on one grid. Eq. 2 reads the other way round: a patch asks, the modality
    answers, any L will do. `query` chooses; the literal Eq. 15 is the default.
    """

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.num_heads, self.query = config.num_heads, config.query
        self.norm_patch = nn.LayerNorm(config.width, eps=1e-6)
        self.norm_modality = nn.LayerNorm(config.width, eps=1e-6)
        self.to_query = nn.Linear(config.width, config.width)
        self.to_key = nn.Linear(config.width, config.width)
        self.to_value = nn.Linear(config.width, config.width)
        self.to_output = nn.Linear(config.width, config.width)

    def project(self, z: Tensor, modality_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V (B, N, rows, K). They do not depend on the timestep: computed once per image."""
        patches, tokens = self.norm_patch(z), self.norm_modality(modality_tokens)
        if self.query == "modality":
            if tokens.shape[1] != patches.shape[1]:
                raise ValueError(
                    f"query='modality' (Eq. 15) needs as many modality tokens as LR patches, got {tokens.shape[1]} and "
                    f"{patches.shape[1]}; resample the modality or use query='patch'"
                )
            source, target = tokens, patches
        else:
            source, target = patches, tokens
        return (
            self.split_heads(self.to_query(source)),
            self.split_heads(self.to_key(target)),
            self.split_heads(self.to_value(target)),
        )

    def read(self, projected: tuple[Tensor, Tensor, Tensor], temperature: Tensor) -> Tensor:
        """The attention itself, (B, P, D), at temperatures (B,).

        Eq. 15 shows no 1/sqrt(K); scaled_dot_product_attention keeps it, so a temperature of 1 is plain attention.
        """
        query, key, value = projected
        attended = F.scaled_dot_product_attention(query / temperature[:, None, None, None], key, value)
        return self.to_output(attended.transpose(1, 2).flatten(2))

    def forward(self, z: Tensor, modality_tokens: Tensor, temperature: Tensor) -> Tensor:
        return self.read(self.project(z, modality_tokens), temperature)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
