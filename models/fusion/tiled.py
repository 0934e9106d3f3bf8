"""The fused tokens of one picture, tile by tile.

Dimension key: B batch  C channels  h w latent grid  P LR patches (2 x 2 cells)  L tokens of one modality
"""

from typing import Protocol

import torch
from torch import Tensor

from models.fusion.fusion import PreparedFusion

PATCH = 2  # latent cells per token side: 16 px, the grid of VQGAN f16 and of DINOv3
KEPT_BYTES = 2 * 2**30  # of projections kept over the steps; a tile beyond is projected again at every step


class TokenFusion(Protocol):
    """A fusion of either backbone."""

    def prepare(
        self, lr_latent: Tensor, modalities: dict[str, Tensor], expert_weights: dict[str, Tensor]
    ) -> PreparedFusion: ...

    def __call__(self, prepared: PreparedFusion, timestep: Tensor) -> Tensor: ...


class FusedTokens:
    """What does not change over the steps is computed once per tile, as far as memory for it goes.

    lr_latent: (1, C, h, w).  modalities (1, ., h/2, w/2), expert_weights (1, h/2, w/2): for the whole picture.
    """

    def __init__(
        self,
        network: TokenFusion,
        lr_latent: Tensor,
        modalities: dict[str, Tensor],
        expert_weights: dict[str, Tensor],
        kept_bytes: int = KEPT_BYTES,
    ):
        self.network, self.lr_latent = network, lr_latent
        self.modalities, self.expert_weights = modalities, expert_weights
        self.prepared: dict[tuple[int, ...], PreparedFusion] = {}
        self.free_bytes = kept_bytes

    def __call__(self, rows: slice, columns: slice, timestep: float) -> Tensor:
        """(1, P, features) of the tile at these latent cells, which begin and end at even places."""
        place = rows.start, rows.stop, columns.start, columns.stop
        prepared = self.prepared.get(place)
        if prepared is None:
            prepared = self.prepare(rows, columns)
            size = num_bytes(prepared)
            if size <= self.free_bytes:
                self.free_bytes -= size
                self.prepared[place] = prepared
        return self.network(prepared, torch.tensor([float(timestep)], device=self.lr_latent.device))

    def prepare(self, rows: slice, columns: slice) -> PreparedFusion:
        grid = tuple(slice(s.start // PATCH, s.stop // PATCH) for s in (rows, columns))
        return self.network.prepare(
            self.lr_latent[..., rows, columns],
            {name: features[..., grid[0], grid[1]] for name, features in self.modalities.items()},
            {name: weights[..., grid[0], grid[1]] for name, weights in self.expert_weights.items()},
        )


def num_bytes(prepared: PreparedFusion) -> int:
    projections = [part for projected in prepared.projected.values() for part in projected if part is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in (prepared.z, *projections))
