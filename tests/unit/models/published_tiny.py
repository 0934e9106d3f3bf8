"""Tiny random checkpoints of `quality`, saved in the layout that the hub publishes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer

TEXT_FEATURES = 32  # of one T5 token; the two CLIPs together have fewer, as published
POOLED = 20  # both CLIPs' projections

DENOISER = {
    "_class_name": "SD3Transformer2DModel",
    "_diffusers_version": "0.31.0",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_FEATURES,
    "caption_projection_dim": 16,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 80,
    "dual_attention_layers": [0],
    "qk_norm": "rms_norm",
}


def save_denoiser(root: Path, weights: str = "dit4sr_r1", seed: int = 0, **changes) -> DiffusionTransformer:
    """Writes `root`/acceptee/DiT4SR/`weights`/transformer: "control" in float32, the rest in float16, as published."""
    folder = root / "acceptee" / "DiT4SR" / weights / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(DENOISER | changes))
    torch.manual_seed(seed)
    variant = "r1" if weights == "dit4sr_r1" else "orig"
    network = DiffusionTransformer(DenoiserConfig.from_published(DENOISER | changes, variant=variant)).eval()
    state = {
        name: value.contiguous() if "control" in name else value.half() for name, value in network.state_dict().items()
    }
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return network
