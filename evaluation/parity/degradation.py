"""Real-ESRGAN's degradation: kernels, filters, sharpening, differentiable JPEG."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from evaluation.parity.difference import Difference, compare, read
from training.degradation import filter2d, jpeg_compress, sharpen
from training.degradation.kernels import (
    bivariate_gaussian,
    bivariate_generalized_gaussian,
    bivariate_plateau,
    circular_lowpass_kernel,
)

FILE = "tensors.safetensors"
NUMBER = r"([\d.]+)"
KERNELS: dict[str, Callable[..., object]] = {
    rf"sinc_w{NUMBER}_k{NUMBER}": lambda w, k: circular_lowpass_kernel(w, int(k)),
    rf"sinc_w{NUMBER}_k{NUMBER}_pad{NUMBER}": lambda w, k, pad: circular_lowpass_kernel(w, int(k), pad_to=int(pad)),
    rf"iso_s{NUMBER}_k{NUMBER}": lambda s, k: bivariate_gaussian(int(k), s),
    rf"aniso_s{NUMBER}_{NUMBER}_r{NUMBER}_k{NUMBER}": lambda s, t, r, k: bivariate_gaussian(int(k), s, t, r),
    rf"gen_aniso_s{NUMBER}_{NUMBER}_r{NUMBER}_b{NUMBER}_k{NUMBER}": (
        lambda s, t, r, b, k: bivariate_generalized_gaussian(int(k), s, t, r, b)
    ),
    rf"plateau_aniso_s{NUMBER}_{NUMBER}_r{NUMBER}_b{NUMBER}_k{NUMBER}": (
        lambda s, t, r, b, k: bivariate_plateau(int(k), s, t, r, b)
    ),
}


def is_degradation(folder: Path) -> bool:
    return (folder / FILE).is_file() and {"image", "kernel21", "usm_default"} <= read(folder / FILE).keys()


def compare_degradation(folder: Path) -> Iterator[Difference]:
    official = read(folder / FILE)
    image = official["image"]
    for name in sorted(official.keys() - {"image", "kernel21"}):
        yield compare(name, degrade(name, image, official["kernel21"]), official[name])


def degrade(name: str, image: Tensor, kernel: Tensor) -> Tensor | None:
    """What the tensor of that name is, made by us; None for a name that says nothing."""
    for pattern, make in KERNELS.items():
        if found := re.fullmatch(pattern, name):
            return torch.as_tensor(make(*map(float, found.groups())))
    if found := re.fullmatch(r"jpeg_q(\d+)", name):
        return jpeg_compress(image, int(found[1]))
    if found := re.fullmatch(r"jpeg_q_tensor_([\d_]+)", name):
        return jpeg_compress(image, torch.tensor([float(q) for q in found[1].split("_")]))
    made = {
        "filter2D": lambda: filter2d(image, torch.stack([kernel, kernel.T])),
        "filter2D_shared": lambda: filter2d(image, kernel),
        "usm_default": lambda: sharpen(image),
    }
    return made[name]() if name in made else None
