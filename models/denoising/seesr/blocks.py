"""The levels of SeeSR's networks: resnets, each followed by attention to the text and then to the image tokens.

Dimension key: B batch  C channels  h w latent grid  L tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.denoising.seesr.config import SeeSRConfig


@dataclass(frozen=True)
class Conditions:
    """What every level is told."""

    time: Tensor  # (B, 4 * first channels)
    text: Tensor  # (B, L, cross_attention_dim)
    image: Tensor  # (B, L, image_width), L any

    @classmethod
    def prepare(
        cls,
        embedding: TimestepEmbedding,
        timestep: Tensor,
        text: Tensor,
        image_tokens: Tensor | None,
        config: SeeSRConfig,
    ) -> "Conditions":
        """timestep: (), (1,) or (B,), 0..999. Without image tokens one of zeros stands in.

        A zero token has a zero value, so the attention answers with its output bias alone. SeeSR was never trained
        without image tokens: this is the closest thing to leaving them away, and worse than having them.
        """
        if image_tokens is None:
            image_tokens = text.new_zeros(len(text), 1, config.image_width)
        waves = get_timestep_embedding(
            timestep.reshape(-1).expand(len(text)),
            config.block_out_channels[0],
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
        )
        return cls(embedding(waves.to(text.dtype)), text, image_tokens)


class Level(nn.Module):
    """Resnets of (in, out) channels; `num_heads` None is a level without attention."""

    is_checkpointed = False

    def __init__(self, config: SeeSRConfig, channels: Sequence[tuple[int, int]], num_heads: int | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnet(config, *pair) for pair in channels)
        self.attentions, self.image_attentions = nn.ModuleList(), nn.ModuleList()
        if num_heads is not None:
            widths = [out for _, out in channels]
            text, image = config.cross_attention_dim, config.image_width
            self.attentions.extend(attention(config, width, num_heads, text) for width in widths)
            self.image_attentions.extend(attention(config, width, num_heads, image) for width in widths)

    def layer(self, index: int, conditions: Conditions, *parts: Tensor) -> Tensor:
        """One resnet with its attention over the channels of all `parts` (B, ., h, w)."""
        if self.is_checkpointed and torch.is_grad_enabled():
            return checkpoint(self.run, index, conditions, *parts, use_reentrant=False)
        return self.run(index, conditions, *parts)

    def run(self, index: int, conditions: Conditions, *parts: Tensor) -> Tensor:
        features = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return self.look(index, self.resnets[index](features, conditions.time), conditions)

    def look(self, index: int, features: Tensor, conditions: Conditions) -> Tensor:
        """Attention to the text, then to the image tokens; the features themselves at a level without."""
        if not self.attentions:
            return features
        features = self.attentions[index](features, encoder_hidden_states=conditions.text, return_dict=False)[0]
        return self.image_attentions[index](features, encoder_hidden_states=conditions.image, return_dict=False)[0]


class DownLevel(Level):
    """(B, C_in, h, w) -> (features, what each layer leaves for the way up); all but the last level halve h and w."""

    def __init__(self, config: SeeSRConfig, channels: Sequence[tuple[int, int]], num_heads: int | None, is_last: bool):
        super().__init__(config, channels, num_heads)
        width = channels[-1][1]
        down = Downsample2D(width, use_conv=True, out_channels=width, padding=1, name="op")
        self.downsamplers = nn.ModuleList() if is_last else nn.ModuleList([down])

    def forward(self, features: Tensor, conditions: Conditions) -> tuple[Tensor, list[Tensor]]:
        left = []
        for index in range(len(self.resnets)):
            features = self.layer(index, conditions, features)
            left.append(features)
        for downsample in self.downsamplers:
            features = downsample(features)
            left.append(features)
        return features, left


class MidLevel(nn.Module):
    """Resnet, both attentions, resnet: (B, C, h, w) -> the same."""

    def __init__(self, config: SeeSRConfig):
        super().__init__()
        width, num_heads = config.block_out_channels[-1], config.attention_head_dim[-1]
        self.resnets = nn.ModuleList(resnet(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([attention(config, width, num_heads, config.cross_attention_dim)])
        self.image_attentions = nn.ModuleList([attention(config, width, num_heads, config.image_width)])

    def forward(self, features: Tensor, conditions: Conditions) -> Tensor:
        features = self.resnets[0](features, conditions.time)
        features = self.attentions[0](features, encoder_hidden_states=conditions.text, return_dict=False)[0]
        features = self.image_attentions[0](features, encoder_hidden_states=conditions.image, return_dict=False)[0]
        return self.resnets[1](features, conditions.time)


class UpLevel(Level):
    """Takes one tensor per layer from the end of `left`; all but the last level enlarge to what then ends it."""

    def __init__(self, config: SeeSRConfig, channels: Sequence[tuple[int, int]], num_heads: int | None, is_last: bool):
        super().__init__(config, channels, num_heads)
        width = channels[-1][1]
        up = Upsample2D(width, use_conv=True, out_channels=width)
        self.upsamplers = nn.ModuleList() if is_last else nn.ModuleList([up])

    def forward(self, features: Tensor, left: list[Tensor], conditions: Conditions) -> Tensor:
        for index in range(len(self.resnets)):
            features = self.layer(index, conditions, features, left.pop())
        for upsample in self.upsamplers:
            # an odd side was rounded up on the way down: twice the side is one too many then
            features = upsample(features, left[-1].shape[-2:])
        return features


def checkpoint_layers(network: nn.Module) -> None:
    """For training in less memory: what the levels of UNet or ControlNet compute is not kept, but computed twice."""
    for module in network.modules():
        if isinstance(module, Level):
            module.is_checkpointed = True


def resnet(config: SeeSRConfig, in_channels: int, out_channels: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels=in_channels,
        out_channels=out_channels,
        temb_channels=config.time_width,
        eps=1e-5,
        groups=config.norm_num_groups,
    )


def attention(config: SeeSRConfig, width: int, num_heads: int, token_width: int) -> Transformer2DModel:
    """Self-attention, attention to tokens of `token_width` features, feed-forward."""
    return Transformer2DModel(
        num_heads,
        width // num_heads,
        in_channels=width,
        cross_attention_dim=token_width,
        norm_num_groups=config.norm_num_groups,
        use_linear_projection=True,
        upcast_attention=config.upcast_attention,
    )


def down_levels(config: SeeSRConfig) -> nn.ModuleList:
    """The way down, the same in UNet and ControlNet."""
    widths = config.block_out_channels
    levels = nn.ModuleList()
    for index, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        channels = [(before, width)] + [(width, width)] * (config.layers_per_block - 1)
        num_heads = config.attention_head_dim[index] if config.has_attention[index] else None
        levels.append(DownLevel(config, channels, num_heads, is_last=index == len(widths) - 1))
    return levels
