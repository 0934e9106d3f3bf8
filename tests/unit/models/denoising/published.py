"""Reads the fixtures made with the official DiT4SR code, and builds our network from them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"


def tensors(case, name):
    return load_file(FIXTURES / f"parity_{case}" / f"{name}.safetensors")


def published_config(case, **overrides):
    values = json.loads((FIXTURES / f"parity_{case}" / "config.json").read_text())
    return DenoiserConfig.from_published(values, **overrides)


def published_network(case, **overrides):
    """With `fused=True` the fused parameters keep their random start; all others are the published ones."""
    torch.manual_seed(0)
    network = DiffusionTransformer(published_config(case, **overrides)).eval()
    loaded = network.load_state_dict(tensors(case, "weights"), strict=not network.config.fused)
    assert loaded.unexpected_keys == []
    return network


def published_inputs(case):
    """Arguments of `forward`, in order, up to the timestep."""
    names = ("hidden_states", "controlnet_image", "encoder_hidden_states", "pooled_projections", "timestep")
    inputs = tensors(case, "inputs")
    return [inputs[name] for name in names]
