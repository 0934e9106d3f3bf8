"""The stock transformer of SD3.5 beside which ours is timed: diffusers' own class at the same sizes."""

from typing import Any

import torch

from models.denoising.config import DenoiserConfig

CPU = torch.device("cpu")  # while a library is imported, which makes tensors of its own


def stock_transformer(config: DenoiserConfig) -> Any:
    """diffusers' SD3Transformer2DModel of `config`: no LR group, no fused group. Random weights."""
    with CPU:
        from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.num_layers,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        joint_attention_dim=config.joint_attention_dim,
        caption_projection_dim=config.width,
        pooled_projection_dim=config.pooled_projection_dim,
        pos_embed_max_size=config.pos_embed_max_size,
        dual_attention_layers=config.dual_attention_layers,
        qk_norm=config.qk_norm,
    )
