"""DINO: the patch features of DINOv3, from the gated repository or from timm's copy of it."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.modalities.published.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalise

HEAD_WIDTH = 64  # of every published DINOv3; timm's config does not say it


class Dino:
    """(B, 3, H, W) in [0, 1] -> features (B, C, H/16, W/16), rounded to whole patches; class and register tokens
    are left out. The processor's 224 px are not applied: any multiple of 16 works, and the paper's grid needs 512.
    """

    def __init__(self, model: Any):
        self.model = model

    @classmethod
    def load(cls, folder: Path, device: str | torch.device, dtype: torch.dtype) -> "Dino":
        """The network in a folder as the hub has it, of transformers' or timm's kind."""
        from transformers import DINOv3ViTModel

        config = json.loads((folder / "config.json").read_text())
        if "architecture" in config:
            return cls(_load_timm(folder, config["architecture"]).to(device, dtype).eval())
        model = DINOv3ViTModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        return cls(model.to(device).eval())

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        patch = self.model.config.patch_size
        grid = [max(round(side / patch), 1) for side in image.shape[-2:]]
        size = [patch * cells for cells in grid]
        seen = image.float()
        if size != list(image.shape[-2:]):  # floats, as the published processor resizes
            seen = F.interpolate(seen, size=size, mode="bilinear", antialias=True)
        seen = normalise(seen, IMAGENET_MEAN, IMAGENET_STD).to(weight.device, weight.dtype)
        tokens = self.model(pixel_values=seen).last_hidden_state[:, 1 + self.model.config.num_register_tokens :]
        return tokens.transpose(1, 2).unflatten(2, grid).to(image.device, image.dtype)


def _load_timm(folder: Path, architecture: str) -> Any:
    from safetensors.torch import load_file
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    state = load_file(str(folder / "model.safetensors"))
    if "dinov3" not in architecture or "blocks.0.mlp.fc1.weight" not in state:
        raise ValueError(f"{folder}: '{architecture}' is not a plain DINOv3 ViT (small, base or large)")
    width = state["cls_token"].shape[-1]
    has_bias = "blocks.0.attn.q_bias" in state or "blocks.0.attn.qkv.bias" in state
    config = DINOv3ViTConfig(
        patch_size=state["patch_embed.proj.weight"].shape[-1],
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        num_register_tokens=state["reg_token"].shape[1],
        query_bias=has_bias,
        value_bias=has_bias,
    )
    model = DINOv3ViTModel(config)
    # transformers 5 has put the layers one module deeper
    layers = "model.layer." if any(name.startswith("model.layer.") for name in model.state_dict()) else "layer."
    lacking, unknown = model.load_state_dict(convert_timm(state, layers), strict=False)
    # only training masks patches, and the copies leave that token out
    if set(lacking) - {"embeddings.mask_token"} or unknown:
        raise ValueError(f"{folder}: keys do not fit DINOv3, lacking {lacking[:3]}, unknown {unknown[:3]}")
    return model


_TIMM_NAMES = (
    ("patch_embed.proj.", "embeddings.patch_embeddings."),
    (".attn.proj.", ".attention.o_proj."),
    (".attn.q_bias", ".attention.q_proj.bias"),
    (".attn.v_bias", ".attention.v_proj.bias"),
    (".mlp.fc1.", ".mlp.up_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
    (".gamma_1", ".layer_scale1.lambda1"),
    (".gamma_2", ".layer_scale2.lambda1"),
)


def convert_timm(state: dict[str, Tensor], layers: str = "model.layer.") -> dict[str, Tensor]:
    """timm's keys -> those of transformers' DINOv3ViTModel. Its fused qkv is cut in three; the keys have no bias.

    layers: what the names of that class's layers begin with.
    """
    converted = {}
    for name, value in state.items():
        if name in ("cls_token", "reg_token"):
            converted["embeddings." + {"cls_token": "cls_token", "reg_token": "register_tokens"}[name]] = value
            continue
        if name.startswith("rope.") or name.endswith(".k_bias"):  # computed, and zero
            continue
        for old, new in (*_TIMM_NAMES, ("blocks.", layers)):
            name = name.replace(old, new, 1)
        if ".attn.qkv." in name:
            kind = name.rsplit(".", 1)[1]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                if kind == "weight" or letter != "k":
                    converted[name.replace(f".attn.qkv.{kind}", f".attention.{letter}_proj.{kind}")] = part
        else:
            converted[name] = value
    return converted
