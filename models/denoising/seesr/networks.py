"""SeeSR's two networks, under their published state-dict names: the UNet that denoises, the ControlNet that steers it.

Dimension key: B batch  h w latent grid  L tokens
"""

from dataclasses import dataclass

from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from models.denoising.seesr.blocks import Conditions, MidLevel, UpLevel, down_levels
from models.denoising.seesr.config import SeeSRConfig


@dataclass(frozen=True)
class Residuals:
    """What the ControlNet adds to the UNet: one tensor per layer of the way down, one for the middle."""

    down: tuple[Tensor, ...]
    mid: Tensor


class SeeSRUNet(nn.Module):
    """Noisy latent (B, 4, h, w) -> epsilon (B, 4, h, w); any h and w."""

    def __init__(self, config: SeeSRConfig):
        super().__init__()
        self.config = config
        first = config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, config.time_width)
        self.down_blocks = down_levels(config)
        self.mid_block = MidLevel(config)
        self.up_blocks = up_levels(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, first, eps=1e-5)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)

    def forward(
        self,
        noisy_latent: Tensor,
        timestep: Tensor,
        text_embeddings: Tensor,
        image_tokens: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """timestep (B,) or one for all, 0..999; text (B, L, 1024); image (B, any, 512), None: see `Conditions`."""
        conditions = Conditions.prepare(self.time_embedding, timestep, text_embeddings, image_tokens, self.config)
        features = self.conv_in(noisy_latent)
        left = [features]
        for level in self.down_blocks:
            features, more = level(features, conditions)
            left += more
        features = self.mid_block(features, conditions)
        if residuals is not None:
            left = [skip + added for skip, added in zip(left, residuals.down, strict=True)]
            features = features + residuals.mid
        for level in self.up_blocks:
            features = level(features, left, conditions)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(features)))


class SeeSRControlNet(nn.Module):
    """Noisy latent (B, 4, h, w) and LR image (B, 3, 8h, 8w) in [0, 1] -> what is added inside the UNet."""

    def __init__(self, config: SeeSRConfig):
        super().__init__()
        self.config = config
        first = config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, config.time_width)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            first, block_out_channels=config.conditioning_embedding_out_channels
        )
        self.down_blocks = down_levels(config)
        self.mid_block = MidLevel(config)
        self.controlnet_down_blocks = nn.ModuleList([nn.Conv2d(first, first, 1)])
        for index, width in enumerate(config.block_out_channels):
            is_last = index == len(config.block_out_channels) - 1
            num_left = config.layers_per_block + (not is_last)
            self.controlnet_down_blocks.extend(nn.Conv2d(width, width, 1) for _ in range(num_left))
        self.controlnet_mid_block = nn.Conv2d(width, width, 1)

    def forward(
        self,
        noisy_latent: Tensor,
        timestep: Tensor,
        text_embeddings: Tensor,
        lr_image: Tensor,
        image_tokens: Tensor | None = None,
        conditioning_scale: float = 1.0,
    ) -> Residuals:
        """Arguments as the UNet's; `conditioning_scale` multiplies every residual."""
        conditions = Conditions.prepare(self.time_embedding, timestep, text_embeddings, image_tokens, self.config)
        features = self.conv_in(noisy_latent) + self.controlnet_cond_embedding(lr_image)
        left = [features]
        for level in self.down_blocks:
            features, more = level(features, conditions)
            left += more
        features = self.mid_block(features, conditions)
        down = zip(self.controlnet_down_blocks, left, strict=True)
        return Residuals(
            tuple(conv(skip) * conditioning_scale for conv, skip in down),
            self.controlnet_mid_block(features) * conditioning_scale,
        )


def up_levels(config: SeeSRConfig) -> nn.ModuleList:
    """The way up, coarsest level first; each layer reads one tensor that the way down left."""
    widths = config.block_out_channels
    levels = nn.ModuleList()
    before = widths[-1]
    for index in reversed(range(len(widths))):
        width, below = widths[index], widths[max(0, index - 1)]
        # the last layer of a level reads what the finer level's downsampling, or the first convolution, left
        skips = [width] * config.layers_per_block + [below]
        channels = [((before if k == 0 else width) + skip, width) for k, skip in enumerate(skips)]
        num_heads = config.attention_head_dim[index] if config.has_attention[index] else None
        levels.append(UpLevel(config, channels, num_heads, is_last=index == 0))
        before = width
    return levels
