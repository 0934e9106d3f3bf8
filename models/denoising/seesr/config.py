"""The one frozen value that SeeSR's UNet and its ControlNet are built from."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

# What the published config.json could say and these networks do not do: any other value is refused.
FIXED: Mapping[str, Any] = {
    "use_image_cross_attention": True,
    "use_linear_projection": True,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "transformer_layers_per_block": 1,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "attention_type": "default",
    "controlnet_conditioning_channel_order": "rgb",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "conditioning_channels": 3,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "resnet_out_scale_factor": 1.0,
    **dict.fromkeys(
        (
            "center_input_sample",
            "only_cross_attention",
            "dual_cross_attention",
            "resnet_skip_time_act",
            "global_pool_conditions",
            "class_embeddings_concat",
        ),
        False,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "encoder_hid_dim",
            "class_embed_type",
            "addition_embed_type",
            "num_class_embeds",
            "time_embedding_dim",
            "time_embedding_act_fn",
            "timestep_post_act",
            "time_cond_proj_dim",
            "cross_attention_norm",
        )
    ),
}
WITH_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass(frozen=True, kw_only=True)
class SeeSRConfig:
    """Sizes, named as in the published `config.json`; the defaults are those of SD2-base, so of SeeSR."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention_dim: int = 1024
    """Features of one text token."""
    attention_head_dim: tuple[int, ...] = (5, 10, 20, 20)
    """Heads per level, not their width: the published name is wrong and kept."""
    down_block_types: tuple[str, ...] = (*(("CrossAttnDownBlock2D",) * 3), "DownBlock2D")
    norm_num_groups: int = 32
    upcast_attention: bool = False
    """Whether attention scores are computed in float32."""
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    """Of the ControlNet's reader of the LR image; each after the first halves the side."""
    image_width: int = 512
    """Features of one image token; no published config.json holds it."""

    def __post_init__(self) -> None:
        levels = {len(self.block_out_channels), len(self.attention_head_dim), len(self.down_block_types)}
        if len(levels) != 1:
            raise ValueError("block_out_channels, attention_head_dim and down_block_types must be of one length")
        if unknown := sorted(set(self.down_block_types) - set(WITH_ATTENTION)):
            raise ValueError(f"down_block_types {unknown} are unknown; known: {', '.join(WITH_ATTENTION)}")

    @property
    def has_attention(self) -> tuple[bool, ...]:
        """Per level, from the finest: whether its resnets are followed by attention."""
        return tuple(WITH_ATTENTION[kind] for kind in self.down_block_types)

    @property
    def time_width(self) -> int:
        return 4 * self.block_out_channels[0]

    @classmethod
    def from_published(cls, values: Mapping[str, Any]) -> "SeeSRConfig":
        """Reads the `config.json` of the UNet or of the ControlNet.

        Raises ValueError when it describes a network that this is not (SD2's stock UNet for one).
        """
        for name, expected in FIXED.items():
            if values.get(name, expected) != expected:
                raise ValueError(f"this is no SeeSR network: {name} is {values[name]!r}, not {expected!r}")
        taken = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        config = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()})
        mirrored = tuple(WITH_ATTENTION.get(kind) for kind in reversed(values.get("up_block_types", ())))
        if mirrored and mirrored != config.has_attention:
            raise ValueError(f"up_block_types {values['up_block_types']} do not mirror {config.down_block_types}")
        return config
