"""SeeSR's noise prediction for a whole picture: guidance in one batch, tile by tile.

Dimension key: B batch (2 with guidance: unconditional, conditional; else 1)  C channels  h w latent grid
L text tokens  J text features
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.denoising.sampling import guide
from models.denoising.seesr.networks import SeeSRControlNet, SeeSRUNet
from models.denoising.tiled import OnTile, Place, blend_tiles

PIXELS = 8  # of the LR image per latent cell
FusedTokensFn = Callable[[slice, slice, int], Tensor]  # (rows, columns of the tile, timestep) -> (1, P, 512)


@dataclass(frozen=True)
class Networks:
    unet: SeeSRUNet
    controlnet: SeeSRControlNet

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def epsilon(
        self,
        noisy_latent: Tensor,
        timestep: Tensor,
        text_embeddings: Tensor,
        lr_image: Tensor,
        tokens: Tensor | None,
        conditioning_scale: float = 1.0,
    ) -> Tensor:
        """(B, C, h, w) float32; both networks run in the precision of their weights.

        timestep () or (B,); lr_image (B, 3, 8h, 8w) in [0, 1]; tokens (B, any, 512).
        """
        noisy, text, lr_image = (given.to(self.dtype) for given in (noisy_latent, text_embeddings, lr_image))
        tokens = None if tokens is None else tokens.to(self.dtype)
        residuals = self.controlnet(noisy, timestep, text, lr_image, tokens, conditioning_scale)
        return self.unet(noisy, timestep, text, tokens, residuals).float()


@dataclass(frozen=True)
class Condition:
    """What one picture is denoised towards. Image tokens and fused tokens are read by one and the same attention."""

    lr_image: Tensor  # (1, 3, 8h, 8w) in [0, 1]: the upscaled LR image
    text_embeddings: Tensor  # (B, L, J)
    image_tokens: Tensor | None  # (1, 145, 512), DAPE's; the same for every tile and both rows of the batch
    cfg_scale: float = 1.0  # read when B is 2
    conditioning_scale: float = 1.0
    fused_tokens: FusedTokensFn | None = None

    def tokens(self, place: Place, timestep: int) -> Tensor | None:
        """(1, any, 512): DAPE's and the fused ones of the tile, those that are there; None without either.

        How the paper joins its fused feature to Stable Diffusion 2 is not said. SeeSR's attention to image tokens takes
        any number of them, so appending changes no shape, and without fused tokens the network is SeeSR's.
        """
        fused = None if self.fused_tokens is None else self.fused_tokens(place[1], place[2], timestep)
        there = [tokens for tokens in (self.image_tokens, fused) if tokens is not None]
        return torch.cat([t.to(there[0]) for t in there], 1) if there else None


def tile_epsilon(networks: Networks, noisy_latent: Tensor, condition: Condition, place: Place, timestep: int) -> Tensor:
    """Guided noise (1, C, ., .) float32 of one tile."""
    batch = len(condition.text_embeddings)
    rows, columns = (slice(PIXELS * s.start, PIXELS * s.stop) for s in place[1:])
    tokens = condition.tokens(place, timestep)
    epsilon = networks.epsilon(
        noisy_latent[place].expand(batch, -1, -1, -1),
        torch.tensor(timestep, device=noisy_latent.device),
        condition.text_embeddings,
        condition.lr_image[..., rows, columns].expand(batch, -1, -1, -1),
        None if tokens is None else tokens.expand(batch, -1, -1),
        condition.conditioning_scale,
    )
    return guide(*epsilon.chunk(2), condition.cfg_scale) if batch == 2 else epsilon


def step_epsilon(
    networks: Networks,
    noisy_latent: Tensor,
    condition: Condition,
    timestep: int,
    *,
    tile: int,
    overlap: int,
    on_tile: OnTile | None = None,
) -> Tensor:
    """Guided noise (1, C, h, w) of a whole picture, in tiles where it is larger than one."""

    def at(place: Place) -> Tensor:
        return tile_epsilon(networks, noisy_latent, condition, place, timestep)

    return blend_tiles(at, noisy_latent, tile=tile, overlap=overlap, on_tile=on_tile)
