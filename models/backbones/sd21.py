"""Stable Diffusion 2.1 base and SeeSR's networks from the hub's layout, as `fidelity` needs them.

Dimension key: B batch  L text tokens
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.backbones.memory import Placement
from models.backbones.published_files import load_into, load_pretrained, load_tokenizer, read_json
from models.denoising.seesr.config import SeeSRConfig
from models.denoising.seesr.networks import SeeSRControlNet, SeeSRUNet
from models.denoising.seesr.sampling import Schedule
from models.sources import SOURCES

# Stability AI took its own repositories of Stable Diffusion 2 off the hub in November 2025; this one is a mirror.
SD21 = SOURCES["sd21"].folder
SEESR = SOURCES["seesr"].folder
UNET, CONTROLNET = f"{SEESR}/seesr/unet", f"{SEESR}/seesr/controlnet"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
Network = TypeVar("Network", SeeSRUNet, SeeSRControlNet)


class TextEncoder:
    """Texts -> (B, 77, 1024): the last, normalised layer of SD2's CLIP. What is beyond 77 tokens is not heard."""

    def __init__(self, tokenizer: Any, network: Any, placement: Placement):
        self.tokenizer, self.network, self.placement = tokenizer, network, placement
        placement.add(network)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, placement: Placement) -> "TextEncoder":
        """Reads tokenizer and text_encoder of an SD2 `folder`. Raises ValueError when one is missing or broken."""
        from transformers import AutoTokenizer, CLIPTextModel

        tokenizer = load_tokenizer(AutoTokenizer, folder / "tokenizer")
        return cls(tokenizer, load_pretrained(CLIPTextModel, folder / "text_encoder", dtype), placement)

    def encode(self, texts: list[str]) -> Tensor:
        ids = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.placement.device)
        with self.placement.use(self.network):
            # no attention mask: SD2 was trained with the padding read as text
            return self.network(ids).last_hidden_state


def load_seesr(kind: type[Network], folder: Path, device: torch.device, dtype: torch.dtype) -> Network:
    """UNet or ControlNet of SeeSR from its folder, ready for inference.

    Raises ValueError when files are missing or broken, or are of another network.
    """
    path = folder / "config.json"
    values = read_json(path)
    try:
        config = SeeSRConfig.from_published(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    with torch.device("meta"):
        network = kind(config)
    load_into(network, folder / WEIGHTS_FILE, device, dtype)
    return network.eval().requires_grad_(False)


def read_schedule(root: Path) -> Schedule:
    """Raises ValueError when the scheduler's file is missing, or is of another schedule."""
    path = root / SD21 / "scheduler" / "scheduler_config.json"
    try:
        return Schedule.from_published(read_json(path))
    except TypeError as error:
        raise ValueError(f"{path} is no configuration of a scheduler ({error})") from error
