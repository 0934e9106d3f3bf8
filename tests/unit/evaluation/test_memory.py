"""The memory table: its counts are those of the networks, and the document tells what the command prints."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from evaluation import memory
from models.backbones.memory import OFFLOADS

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "profiles.md"


def clip(kind, width, layers, heads):
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    return lambda: kind(CLIPTextConfig(**sizes, num_hidden_layers=layers, num_attention_heads=heads))


def vae(latent_channels, has_quant_conv):
    return lambda: AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        use_quant_conv=has_quant_conv,
        use_post_quant_conv=has_quant_conv,
    )


def t5_xxl():
    sizes = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    network = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))
    del network.encoder.embed_tokens  # the same as `shared`
    return network


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("VAE", vae(16, False)),
        ("VAE of SD 2.1", vae(4, True)),
        ("CLIP-L", clip(CLIPTextModelWithProjection, 768, 12, 12)),
        ("CLIP-bigG", clip(CLIPTextModelWithProjection, 1280, 32, 20)),
        ("CLIP-H", clip(CLIPTextModel, 1024, 23, 16)),
        ("T5-XXL", t5_xxl),
    ],
)
def test_the_counts_are_those_of_the_libraries(name, build):
    part = memory.measure(name, build, width=1)
    assert (part.num_bytes, part.largest_layer) == memory.STOCK[name]


def test_the_denoiser_is_counted_without_what_is_dead():
    with torch.device("meta"):
        whole = sum(p.numel() for p in memory.DiffusionTransformer(memory.SD35).parameters())
    assert whole == 2_716_814_144  # as published
    assert 0.95 < memory.quality_parts()[0].num_bytes / (2 * whole) < 0.96


def test_a_plan_that_offloads_more_needs_less():
    parts = memory.quality_parts(fused=True)
    none, model, sequential = (memory.weights_on_device(parts, offload) for offload in OFFLOADS)
    assert none > model > sequential
    largest = max(part.num_bytes for part in parts)
    assert largest < model < largest + 2**30


def test_the_document_tells_what_is_computed():
    assert memory.table() in DOCUMENT.read_text(), "write it anew with: python -m evaluation.memory"
