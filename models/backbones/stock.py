"""SD3.5's VAE and text encoders by their published sizes, with random weights: to measure what they cost, no more.

Dimension key: B batch  L text tokens
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from models.denoising.stock import CPU


@dataclass(frozen=True, kw_only=True)
class StockSizes:
    """The defaults are those of SD3.5 medium."""

    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 16
    norm_groups: int = 32
    clip_l: tuple[int, int, int] = (768, 12, 12)
    """Width, layers, heads; the same of the other CLIP."""
    clip_big_g: tuple[int, int, int] = (1280, 32, 20)
    t5: tuple[int, int, int, int] = (4096, 24, 64, 10240)
    """Width, layers, heads, hidden width of the MLP."""


def stock_vae(sizes: StockSizes) -> Any:
    """diffusers' AutoencoderKL, float32 on torch's default device."""
    with CPU:
        from diffusers import AutoencoderKL

    num_levels = len(sizes.vae_channels)
    return AutoencoderKL(
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        layers_per_block=2,
        latent_channels=sizes.latent_channels,
        norm_num_groups=sizes.norm_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def stock_clip(width: int, num_layers: int, num_heads: int) -> Any:
    """transformers' CLIP text model with its projection."""
    with CPU:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
        )
    )


def stock_t5(width: int, num_layers: int, num_heads: int, hidden: int) -> Any:
    """transformers' T5 encoder, version 1.1."""
    with CPU:
        from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=width,
            d_kv=width // num_heads,
            d_ff=hidden,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_proj="gated-gelu",
        )
    )


class RandomTokens:
    """In a tokenizer's place: ids (B, L) below 32128, whatever the texts say."""

    model_max_length = 77

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(0)
        return SimpleNamespace(input_ids=torch.randint(32128, (len(texts), max_length), generator=generator))
