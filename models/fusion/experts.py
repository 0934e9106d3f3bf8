"""One expert per modality: cross-attention between LR patches and modality tokens, with a temperature (Eq. 15)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
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
    is_local: bool = False  # attention falls with distance on the grid, see ModalityExpert


class Projected(NamedTuple):
    """What an expert needs at every timestep. It does not depend on it: computed once per image."""

    query: Tensor  # (B, N, P, K)
    key: Tensor  # (B, N, L, K)
    value: Tensor  # (B, N, L, K)
    distance: Tensor | None = None  # (N, P, L), up to 0, added to the logits


class ModalityExpert(nn.Module):
    """E_m: LR patches z (B, P, D) and modality tokens (B, L, D) -> what the modality has to say per patch (B, P, D).

    Eq. 15 takes queries from the modality and keys and values from z, which gives L rows; Eq. 14 adds one row per LR
    patch, so it type-checks only where L = P, on one grid. Eq. 2 reads the other way round: a patch asks, the modality
    answers, any L will do. `query` chooses; the literal Eq. 15 is the default.

    The paper gives modality tokens no positions, so an expert can find the token of a patch's own place by its content
    only. With `is_local` (ours; L = P on one grid) each head's logits fall with the squared distance in patches, at a
    slope that is learned: from one head that begins with the patch itself to one that sees nearly everything.
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
        self.slope_logits = nn.Parameter(torch.linspace(1.0, -5.0, config.num_heads)) if config.is_local else None

    def project(self, z: Tensor, modality_tokens: Tensor, grid: tuple[int, int] | None = None) -> Projected:
        """Q, K, V of z (B, P, D) and tokens (B, L, D). grid: rows and columns of both, needed with `is_local`."""
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
        return Projected(
            self.split_heads(self.to_query(source)),
            self.split_heads(self.to_key(target)),
            self.split_heads(self.to_value(target)),
            self.distance(grid) if self.slope_logits is not None else None,
        )

    def distance(self, grid: tuple[int, int] | None) -> Tensor:
        """(N, P, P): minus slope times squared distance of the places of a grid. Raises ValueError without one."""
        if grid is None or self.slope_logits is None:
            raise ValueError("a local expert needs the grid of its tokens")
        rows, columns = (torch.arange(float(side), device=self.slope_logits.device) for side in grid)
        places = torch.cartesian_prod(rows, columns)
        squared = (places[:, None] - places[None, :]).square().sum(-1)
        return -F.softplus(self.slope_logits)[:, None, None] * squared

    def read(self, projected: Projected, temperature: Tensor) -> Tensor:
        """The attention itself, (B, P, D), at temperatures (B,).

        Eq. 15 shows no 1/sqrt(K); scaled_dot_product_attention keeps it, so a temperature of 1 is plain attention.
        """
        query, key, value, distance = projected
        mask = None if distance is None else distance.to(query.dtype)
        attended = F.scaled_dot_product_attention(
            query / temperature[:, None, None, None].to(query.dtype), key, value, mask
        )
        return self.to_output(attended.transpose(1, 2).flatten(2))

    def forward(
        self, z: Tensor, modality_tokens: Tensor, temperature: Tensor, grid: tuple[int, int] | None = None
    ) -> Tensor:
        return self.read(self.project(z, modality_tokens, grid), temperature)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
