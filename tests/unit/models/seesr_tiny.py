"""A tiny random checkpoint of `fidelity`, saved in the layout and under the key names of the published files."""

from pathlib import Path

import torch
from torch import Tensor

from models.modalities.dape.extractor import TAGS_FILE, THRESHOLDS_FILE
from models.modalities.dape.network import TaggerConfig
from models.modalities.dape.weights import LORA_FILE, LORA_RANK, RAM_FILE

TAGGER = TaggerConfig(
    image_size=64,
    window=4,
    embed_dim=8,
    depths=(2, 2),
    num_heads=(2, 4),
    num_tags=6,
    head_width=16,
    head_heads=4,
    head_layers=2,
    head_mlp=24,
)
TEXT_WIDTH = 24
TAGS = ("cat", "dog", "grass", "house", "sky", "tree")


def swin_keys(config: TaggerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of RAM's image encoder, as Microsoft's Swin names them."""
    width, shapes = config.embed_dim, {}
    shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (width, 3, 4, 4), (width,)
    shapes["patch_embed.norm.weight"] = shapes["patch_embed.norm.bias"] = (width,)
    for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        wide = width * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            for name, (out, into) in {
                "attn.qkv": (3 * wide, wide),
                "attn.proj": (wide, wide),
                "mlp.fc1": (4 * wide, wide),
                "mlp.fc2": (wide, 4 * wide),
            }.items():
                shapes[f"{block}{name}.weight"], shapes[f"{block}{name}.bias"] = (out, into), (out,)
            for norm in ("norm1", "norm2"):
                shapes[f"{block}{norm}.weight"] = shapes[f"{block}{norm}.bias"] = (wide,)
            shapes[f"{block}attn.relative_position_bias_table"] = ((2 * config.window - 1) ** 2, heads)
        if i < len(config.depths) - 1:
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * wide, 4 * wide)
            for part in ("weight", "bias"):
                shapes[f"layers.{i}.downsample.norm.{part}"] = (4 * wide,)
    shapes["norm.weight"] = shapes["norm.bias"] = (config.feature_width,)
    return {f"visual_encoder.{name}": shape for name, shape in shapes.items()}


def head_keys(config: TaggerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of RAM's tagging head and of its projections."""
    wide, image, shapes = config.head_width, config.image_width, {}
    for i in range(config.head_layers):
        layer = f"tagging_head.encoder.layer.{i}."
        for name, (out, into) in {
            "crossattention.self.query": (wide, wide),
            "crossattention.self.key": (wide, image),
            "crossattention.self.value": (wide, image),
            "crossattention.output.dense": (wide, wide),
            "intermediate.dense": (config.head_mlp, wide),
            "output.dense": (wide, config.head_mlp),
        }.items():
            shapes[f"{layer}{name}.weight"], shapes[f"{layer}{name}.bias"] = (out, into), (out,)
        for norm in ("crossattention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (wide,)
    shapes |= {"image_proj.weight": (image, config.feature_width), "image_proj.bias": (image,)}
    shapes |= {"wordvec_proj.weight": (wide, image), "wordvec_proj.bias": (wide,)}
    return shapes | {"fc.weight": (1, wide), "fc.bias": (1,), "label_embed": (config.num_tags, image)}


def ram_state(config: TaggerConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under RAM's names, with the tables and the decoder that its file also holds."""
    generator = torch.Generator().manual_seed(seed)
    shapes = swin_keys(config) | head_keys(config)
    state = {
        name: 0.3 * torch.randn(shape, generator=generator) + (len(shape) == 1 and name.endswith("weight"))
        for name, shape in shapes.items()
    }
    state["visual_encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1, dtype=torch.int64)
    state["visual_encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    state["text_decoder.bert.encoder.layer.0.output.dense.weight"] = torch.zeros(2, 2)
    state["tag_encoder.encoder.layer.0.output.dense.weight"] = torch.zeros(2, 2)
    return state


def lora_state(config: TaggerConfig, seed: int = 1) -> dict[str, Tensor]:
    """Random LoRA under the names of SeeSR's file: queries and values of the Swin, queries and keys of the head."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in (swin_keys(config) | head_keys(config)).items():
        layer = name.removesuffix(".weight")
        if layer.endswith(".attn.qkv"):
            shapes = (2 * LORA_RANK, shape[1]), (2 * shape[1], LORA_RANK)
        elif layer.endswith((".self.query", ".self.key")) and name != layer:
            shapes = (LORA_RANK, shape[1]), (shape[0], LORA_RANK)
        else:
            continue
        if name == layer:
            continue
        for part, size in zip("AB", shapes, strict=True):
            state[f"{layer}.lora_{part}"] = 0.3 * torch.randn(size, generator=generator)
    state["tag_encoder.encoder.layer.0.attention.self.query.lora_A"] = torch.zeros(LORA_RANK, 2)
    state["tag_encoder.encoder.layer.0.attention.self.query.lora_B"] = torch.zeros(2, LORA_RANK)
    return state


def save_tagger(root: Path, config: TaggerConfig = TAGGER, threshold: float = 0.5) -> None:
    for file, content in ((RAM_FILE, {"model": ram_state(config), "epoch": 3}), (LORA_FILE, lora_state(config))):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, root / file)
    (root / TAGS_FILE).write_text("\n".join(TAGS) + "\n")
    (root / THRESHOLDS_FILE).write_text(f"{threshold}\n" * len(TAGS))
