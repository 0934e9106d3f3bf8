"""AdaIN and wavelet colour correction."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from evaluation.parity.difference import ONE_LEVEL, Difference, compare, levels, read
from models.colour import adain, blur_axis, correct_colour, low_frequencies, wavelet

FILE = "tensors.safetensors"


def is_colour(folder: Path) -> bool:
    return (folder / FILE).is_file() and {"target", "source", "adain", "wavelet"} <= read(folder / FILE).keys()


def compare_colour(folder: Path) -> Iterator[Difference]:
    official = read(folder / FILE)
    target, source = official["target"], official["source"]
    yield compare("adain", adain(target, source), official["adain"])
    yield compare("wavelet", wavelet(target, source), official["wavelet"])
    low = torch.stack([torch.stack([low_frequencies(plane.clone()) for plane in image]) for image in target])
    for name, ours in {"wavelet_low": low, "wavelet_high": target - low}.items():
        if name in official:
            yield compare(name, ours, official[name])
    for name in sorted(official):
        if found := re.fullmatch(r"blur_radius(\d+)", name):
            yield compare(name, blur(target, int(found[1])), official[name])
    for method in ("adain", "wavelet"):
        if (name := f"{method}_u8") in official:
            images = (official[f"{k}_u8"].permute(2, 0, 1)[None].float() / 255 for k in ("target", "source"))
            corrected = levels(correct_colour(*images, method))[0].permute(1, 2, 0)
            yield compare(name, corrected, official[name], scale=ONE_LEVEL)


def blur(images: Tensor, radius: int) -> Tensor:
    """One level of the a-trous transform."""
    blurred = images.clone()
    for plane in blurred.flatten(0, 1):
        scratch = torch.empty_like(plane)
        blur_axis(plane, scratch, radius)
        blur_axis(scratch.T, plane.T, radius)
    return blurred
