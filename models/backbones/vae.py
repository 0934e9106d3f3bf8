"""SD3.5's VAE, in tiles that really run: encoder and decoder of any image in the memory of one tile.

Dimension key: B batch  C latent channels  H W pixels  h w latent grid, H = 8 h
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.backbones.memory import Placement, TileSizes, free_bytes
from models.backbones.published_files import load_pretrained
from models.backbones.sizes import VAE_SCALE
from models.tiling import BlendAccumulator, Tile, plan_tiles

OnTile = Callable[[float], None]  # share of the tiles done, in (0, 1]; raise to cancel


class TiledVae:
    """diffusers' AutoencoderKL between pictures in [0, 1] and latents as the denoiser takes them.

    Overlapping tiles are blended. Group norms see one tile, so a tiled result differs a little from an untiled one; up
    to a tile's size (128 latent cells, 1024 px) there is one tile, and no difference.
    """

    def __init__(self, network: Any, placement: Placement):
        self.network, self.placement = network, placement
        self.scale, self.shift = network.config.scaling_factor, network.config.shift_factor or 0.0
        self.dtype = network.dtype
        placement.add(network)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, placement: Placement) -> "TiledVae":
        """Raises ValueError when the published folder is absent, broken or of another architecture."""
        from diffusers import AutoencoderKL

        network = load_pretrained(AutoencoderKL, folder, dtype)
        if (factor := 2 ** (len(network.config.block_out_channels) - 1)) != VAE_SCALE:
            raise ValueError(f"{folder} is a VAE of {factor} pixels per latent cell; {VAE_SCALE} are needed")
        return cls(network, placement)

    def encode(
        self,
        image: Tensor,
        tiles: TileSizes,
        generators: list[torch.Generator] | None = None,
        on_tile: OnTile | None = None,
    ) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> normalised latent (B, C, h, w) float32.

        generators: None for the mode of the posterior, B = 1. Else one sample per generator, as the released code
        draws one for each half of its guidance batch.
        """
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        moments = self.read_moments((2 * image - 1).to(self.dtype), tiles, on_tile)
        posterior = DiagonalGaussianDistribution(moments)
        if generators is None:
            latent = posterior.mode()
        else:
            latent = torch.cat([posterior.sample(generator) for generator in generators])
        return (latent - self.shift) * self.scale

    def decode(self, latent: Tensor, tiles: TileSizes, on_tile: OnTile | None = None) -> Tensor:
        """Normalised latent (1, C, h, w) -> picture (1, 3, H, W) in [0, 1], float32."""
        decoded = self.paint((latent / self.scale + self.shift).to(self.dtype), tiles, on_tile)
        return (decoded / 2 + 0.5).clamp(0, 1)

    def read_moments(self, pixels: Tensor, tiles: TileSizes, on_tile: OnTile | None) -> Tensor:
        """(1, 3, H, W) in [-1, 1] -> mean and log variance of the posterior, (1, 2C, h, w) float32."""

        def run(tile: Tile) -> Tensor:
            rows, columns = (slice(s.start * VAE_SCALE, s.stop * VAE_SCALE) for s in (tile.rows, tile.columns))
            return self.network.encode(pixels[..., rows, columns]).latent_dist.parameters

        height, width = pixels.shape[-2] // VAE_SCALE, pixels.shape[-1] // VAE_SCALE
        return self.over_tiles("encode", height, width, tiles, run, 1, on_tile)

    def paint(self, cells: Tensor, tiles: TileSizes, on_tile: OnTile | None) -> Tensor:
        """The VAE's own latent (1, C, h, w) -> (1, 3, H, W) about [-1, 1], float32."""

        def run(tile: Tile) -> Tensor:
            return self.network.decode(cells[..., tile.rows, tile.columns]).sample

        return self.over_tiles("decode", cells.shape[-2], cells.shape[-1], tiles, run, VAE_SCALE, on_tile)

    def over_tiles(
        self,
        name: str,
        height: int,
        width: int,
        tiles: TileSizes,
        run: Callable[[Tile], Tensor],
        scale: int,
        on_tile: OnTile | None,
    ) -> Tensor:
        """Blends what `run` gives for each tile of a height x width latent; tiles shrink when memory runs out."""

        def whole(side: int) -> Tensor:
            plan = plan_tiles(height, width, side, side // 4)
            blend = BlendAccumulator(plan, height, width, side // 4, scale)
            for i, tile in enumerate(plan, start=1):
                blend.add(tile, run(tile).float())
                if on_tile is not None:
                    on_tile(i / len(plan))
            return blend.result()

        with self.placement.use(self.network):
            tiles.choose(name, free_bytes(self.placement.device))
            return tiles.fit(name, whole)
