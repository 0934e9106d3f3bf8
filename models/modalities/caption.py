"""Captions without a language model: what the segmentation names, and how the LR image is degraded.

The paper captions with LLaVA. `compact` writes a short sentence from its own segmentation and from three measurements
of the LR image; a caller's prompt is put in front of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SHARE = 0.08  # a segment smaller than this share of the image is not named
MAX_NAMED = 4


def describe(lr_image: Tensor, segmentation: Tensor | None, names: tuple[str, ...]) -> str:
    """One sentence for one image.

    lr_image: (3, H, W) in [0, 1]; segmentation: probabilities (S, h, w) or None (modality off); names: one per class,
    "" for classes without a name.
    """
    words = []
    if segmentation is not None:
        share = segmentation.mean((1, 2))
        order = share.argsort(descending=True).tolist()
        words = [names[k] for k in order if names[k] and share[k] >= MIN_SHARE][:MAX_NAMED]
    subject = "a photo of " + ", ".join(words) if words else "a photo"
    return f"{subject}, {', '.join(degradation_words(lr_image))}"


def degradation_words(lr_image: Tensor) -> list[str]:
    """Words for noise, blur and compression, from the pixels of (3, H, W) in [0, 1]."""
    noise, sharpness, blocks = measure_degradation(lr_image)
    words = [
        "very noisy" if noise > 0.05 else "noisy" if noise > 0.02 else "clean",
        "very blurry" if sharpness < 0.35 else "blurry" if sharpness < 0.6 else "sharp",
    ]
    if blocks > 0.06:
        words.append("compressed")
    return words


def measure_degradation(lr_image: Tensor) -> tuple[float, float, float]:
    """(noise, sharpness, blocks).

    noise: deviation estimated from the median absolute response of the Laplacian-difference filter (Immerkaer 1996).
    sharpness: gradient energy left after a blur-resistant comparison, |dx| at 1 px over |dx| at 2 px, about 0.5 on a
    ramp and near 1 at single-pixel detail. blocks: excess of the gradient at phase 8, the mark of JPEG.
    """
    y = lr_image.mean(0, keepdim=True)[None]
    if min(y.shape[-2:]) < 16:
        return 0.0, 0.5, 0.0  # too small to measure: neutral words
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])[None, None]
    noise = float(F.conv2d(y, kernel).abs().median()) / (0.6745 * 6)
    one = y.diff(dim=-1).abs().mean() + y.diff(dim=-2).abs().mean()
    two = (y[..., 2:] - y[..., :-2]).abs().mean() + (y[..., 2:, :] - y[..., :-2, :]).abs().mean()
    sharpness = float(one / two.clamp_min(1e-6))
    profile = y.diff(dim=-1).abs().mean((0, 1, 2))
    phases = torch.stack([profile[k::8].mean() for k in range(8)])
    return noise, sharpness, float(phases[7] / phases.mean().clamp_min(1e-6) - 1)
