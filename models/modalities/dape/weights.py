"""Reads RAM's checkpoint and SeeSR's LoRA for it: key names of the originals -> ours, the LoRA added to the weights."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import read_foreign
from models.modalities.dape.network import Tagger, TaggerConfig, build_encoder
from models.sources import SOURCES

RAM_FILE = f"{SOURCES['ram'].folder}/ram_swin_large_14m.pth"
LORA_FILE = f"{SOURCES['seesr'].folder}/DAPE.pth"
LORA_RANK = 8
LORA_SCALE = 1 / LORA_RANK  # loralib: alpha / rank, and alpha is left at 1

ENCODER = "visual_encoder."
HEAD = "tagging_head.encoder.layer."
# inside the Swin: the original's names -> those of the hub's Swin checkpoints; queries, keys, values are cut apart
SWIN_NAMES = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^norm\.", "layernorm."),
    (r"^layers\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.relative", ".attention.self.relative"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
HEAD_NAMES = (
    (r"\.crossattention\.output\.dense\.", ".attention.out_proj."),
    (r"\.crossattention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".hidden."),
    (r"\.output\.dense\.", ".output."),
    (r"\.output\.LayerNorm\.", ".output_norm."),
)
OWN = ("image_proj.", "label_embed", "wordvec_proj.", "fc.")
RECOMPUTED = ("relative_position_index", "attn_mask")  # tables of the original that follow from its sizes


def load_tagger(root: Path, config: TaggerConfig | None = None) -> Tagger:
    """RAM with SeeSR's LoRA from the models folder, ready for inference, float32 on the CPU.

    Not verified against the published files, which were not at hand: their key names are those that the released
    code (RAM, SeeSR) gives its modules, their sizes agree with the listed 7.19 MB of DAPE.pth.
    Raises ValueError, with what to do, when a file is missing, broken or does not fit.
    """
    config = config or TaggerConfig()
    ram, lora = (read_foreign(root / file) for file in (RAM_FILE, LORA_FILE))
    try:
        state = merge_lora(select(ram), {name: value for name, value in lora.items() if isinstance(value, Tensor)})
        tagger = Tagger(build_encoder(config, convert_encoder(state)), config)
        found = tagger.load_state_dict(convert_head(state), strict=False)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{root / RAM_FILE} does not fit DAPE: {error}") from error
    if missing := [name for name in found.missing_keys if not name.startswith("encoder.")]:
        raise ValueError(f"{root / RAM_FILE} lacks {', '.join(missing[:3])}; fetch it again")
    return tagger.eval().requires_grad_(False)


def select(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """The weights that matter inside RAM's checkpoint, its two decoders left out. "model" holds them if it is there."""
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, Mapping):
        raise ValueError("the checkpoint holds no weights under 'model'")
    taken = {}
    for name, value in state.items():
        name = name.replace("vision_multi.", "tagging_head.")  # what the head was called when it was trained
        if name.startswith((ENCODER, HEAD, *OWN)) and not name.endswith(RECOMPUTED):
            taken[name] = value.float()
    if not taken:
        raise ValueError("these are not the weights of RAM")
    return taken


def merge_lora(state: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + B A / 8 for every weight with a LoRA: queries and values of the Swin, queries and keys of the head.

    Inside a Swin layer A is two matrices on top of each other, for queries and values, and so is B.
    Raises ValueError when the file holds no LoRA for these weights, or a LoRA of other sizes.
    """
    merged, num_merged = dict(state), 0
    for name, first in lora.items():
        layer, found, kind = name.rpartition(".lora_")
        weight = f"{layer}.weight"
        if not found or kind != "A" or weight not in merged:
            continue  # the original also trained a LoRA inside its decoders, which are never asked
        second = lora[f"{layer}.lora_B"].float()
        if layer.endswith(".attn.qkv"):
            (query_a, value_a), (query_b, value_b) = first.float().chunk(2), second.chunk(2)
            change = torch.cat([query_b @ query_a, torch.zeros_like(query_b @ query_a), value_b @ value_a])
        else:
            change = second @ first.float()
        if change.shape != merged[weight].shape:
            raise ValueError(f"the LoRA of {weight} is {tuple(change.shape)}, not {tuple(merged[weight].shape)}")
        merged[weight] = merged[weight] + LORA_SCALE * change
        num_merged += 1
    if not num_merged:
        raise ValueError("DAPE.pth holds no LoRA for these weights; fetch it again")
    return merged


def convert_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RAM's Swin under the names of the hub's Swin checkpoints."""
    converted = {}
    for name, value in state.items():
        if not name.startswith(ENCODER):
            continue
        name = rename(name.removeprefix(ENCODER), SWIN_NAMES)
        if ".attn.qkv." in name:
            for part, cut in zip(("query", "key", "value"), value.chunk(3), strict=True):
                converted[name.replace(".attn.qkv.", f".attention.self.{part}.")] = cut
        else:
            converted[name] = value
    return converted


def convert_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RAM's tagging head and projections under the names of `Tagger`."""
    converted = {name: value for name, value in state.items() if name.startswith(OWN)}
    indices = sorted({int(name.removeprefix(HEAD).split(".")[0]) for name in state if name.startswith(HEAD)})
    for index in indices:
        before, after = f"{HEAD}{index}.", f"layers.{index}."
        biases = []
        for part, short in (("query", "q"), ("key", "k"), ("value", "v")):
            prefix = f"{before}crossattention.self.{part}."
            converted[f"{after}attention.{short}_proj_weight"] = state[prefix + "weight"]
            biases.append(state[prefix + "bias"])
        converted[f"{after}attention.in_proj_bias"] = torch.cat(biases)
        for name, value in state.items():
            if name.startswith(before) and ".crossattention.self." not in name and ".attention." not in name:
                converted[rename(after.rstrip(".") + "." + name.removeprefix(before), HEAD_NAMES)] = value
    return converted


def rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name
