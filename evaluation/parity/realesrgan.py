"""Real-ESRGAN's two networks, and RealESRGANer's tiling."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from evaluation.parity.difference import ONE_LEVEL, Difference, compare, read
from evaluation.parity.transformer import read_config
from models.routing.published import SuperResolver
from models.routing.realesrgan import RRDBNet, SRVGGNetCompact, build_from_state

TILED = re.compile(r"out_(?:float|bgr_u8)_tile(\d+)_prepad(\d+)")


def is_network(folder: Path) -> bool:
    config = read_config(folder)
    return ("num_grow_ch" in config or "num_conv" in config) and (folder / "weights.safetensors").is_file()


def compare_network(folder: Path) -> Iterator[Difference]:
    network = build_from_state(read(folder / "weights.safetensors")).eval().requires_grad_(False)
    yield compare("y", network(read(folder / "inputs.safetensors")["x"]), read(folder / "outputs.safetensors")["y"])
    if (folder / "tiling.safetensors").is_file():
        yield from compare_tiling(network, read(folder / "tiling.safetensors"))


def compare_tiling(network: RRDBNet | SRVGGNetCompact, official: dict[str, Tensor]) -> Iterator[Difference]:
    """Whole float images before rounding, and bytes."""
    image = official["image_bgr_u8"].flip(-1).permute(2, 0, 1)[None].float() / 255
    for name in sorted(official):
        if (found := TILED.fullmatch(name)) is None:
            continue
        sr_image = SuperResolver(network, tile=int(found[1]), pre_pad=int(found[2]))(image)
        if name.startswith("out_float"):
            # the official tensor is neither cropped of the mirrored pixels nor clamped
            height, width = sr_image.shape[-2:]
            yield compare(name, sr_image, official[name][..., :height, :width].clamp(0, 1))
        else:
            bytes_ = (sr_image[0].permute(1, 2, 0).flip(-1) * 255).round().to(torch.uint8)
            yield compare(name, bytes_, official[name], scale=ONE_LEVEL)
