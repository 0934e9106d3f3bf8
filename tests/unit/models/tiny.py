"""A whole network of toy size with random weights: every line that `compact` runs, in a fraction of a second."""

from dataclasses import replace

import torch
from torch import nn

from models.configs import COMPACT_DENOISER, M3ESRConfig, SamplerConfig
from models.fusion.experts import FusionConfig
from models.modalities.config import PerceptionConfig
from models.modalities.text import TextConfig, train_tokenizer
from models.network import M3ESR
from models.pipeline import Upscaler
from models.routing.coarse import CoarseConfig
from models.routing.router import RouterConfig

SEGMENTS = 4


def tiny_config(**changes: object) -> M3ESRConfig:
    config = M3ESRConfig(
        coarse=CoarseConfig(widths=(8, 12), num_blocks=(1, 1)),
        perception=PerceptionConfig(
            width=16, fine_width=8, num_blocks=1, num_heads=2, dino_channels=8, num_segments=SEGMENTS
        ),
        router=RouterConfig(width=12, num_heads=2, num_layers=1),
        fusion=FusionConfig(width=16, num_heads=2, map_width=8, dino_channels=8),
        text=TextConfig(vocabulary_size=96, max_tokens=8, width=16, num_heads=2, num_layers=1),
        denoiser=replace(
            COMPACT_DENOISER,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
        ),
        sampler=SamplerConfig(num_steps=2),
        segment_names=("sky", "tree", "", "wall"),
    )
    return replace(config, **changes)


def tiny_network(seed: int = 0, **changes: object) -> M3ESR:
    """Random everywhere, also where training starts at zero, so that every path changes the result."""
    torch.manual_seed(seed)
    network = M3ESR(tiny_config(**changes)).eval()
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)
        if name.startswith("denoiser.proj_out"):
            nn.init.normal_(parameter, std=0.05)
    return network.requires_grad_(False)


def tiny_upscaler(seed: int = 0, **changes: object) -> Upscaler:
    network = tiny_network(seed, **changes)
    tokenizer = train_tokenizer(["a photo of sky, tree, wall, noisy, sharp"], network.config.text)
    return Upscaler(network, tokenizer, "tiny")
