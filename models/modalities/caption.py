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
    """One sentence for one image: `describe_batch` of lr_image (3, H, W) and segmentation (S, h, w) or None."""
    return describe_batch(lr_image[None], None if segmentation is None else segmentation[None], names)[0]


def describe_batch(lr_images: Tensor, segmentation: Tensor | None, names: tuple[str, ...]) -> list[str]:
    """One sentence for each of B images.

    lr_images: (B, 3, H, W) in [0, 1]; segmentation: probabilities (B, S, h, w) or None (modality off); names: one per
    class, "" for classes without a name.
    """
    measured = measure_degradation(lr_images).tolist()
    shares = [[0.0] * len(names)] * len(measured) if segmentation is None else segmentation.mean((2, 3)).tolist()
    captions = []
    for share, values in zip(shares, measured, strict=True):
        order = sorted(range(len(share)), key=lambda k: -share[k])
        words = [names[k] for k in order if names[k] and share[k] >= MIN_SHARE][:MAX_NAMED]
        subject = "a photo of " + ", ".join(words) if words else "a photo"
        captions.append(f"{subject}, {', '.join(degradation_words(*values))}")
    return captions


def degradation_words(noise: float, sharpness: float, blocks: float) -> list[str]:
    """Words for noise, blur and compression, from what `measure_degradation` found."""
    words = [
        "very noisy" if noise > 0.05 else "noisy" if noise > 0.02 else "clean",
        "very blurry" if sharpness < 0.35 else "blurry" if sharpness < 0.6 else "sharp",
    ]
    if blocks > 0.06:
        words.append("compressed")
    return words


def measure_degradation(lr_images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3): noise, sharpness, blocks.

    noise: deviation estimated from the median absolute response of the Laplacian-difference filter (Immerkaer 1996).
    sharpness: gradient energy left after a blur-resistant comparison, |dx| at 1 px over |dx| at 2 px, about 0.5 on a
    ramp and near 1 at single-pixel detail. blocks: excess of the gradient at phase 8, the mark of JPEG.
    """
    y = lr_images.mean(1, keepdim=True)
    if min(y.shape[-2:]) < 16:
        return y.new_tensor([0.0, 0.5, 0.0]).expand(len(y), 3)  # too small to measure: neutral words
    kernel = y.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])[None, None]
    noise = F.conv2d(y, kernel).abs().flatten(1).median(1).values / (0.6745 * 6)

    def mean(x: Tensor) -> Tensor:
        return x.abs().mean((1, 2, 3))

    one = mean(y.diff(dim=-1)) + mean(y.diff(dim=-2))
    two = mean(y[..., 2:] - y[..., :-2]) + mean(y[..., 2:, :] - y[..., :-2, :])
    profile = y.diff(dim=-1).abs().mean((1, 2))
    phases = torch.stack([profile[:, k::8].mean(1) for k in range(8)], 1)
    blocks = phases[:, 7] / phases.mean(1).clamp_min(1e-6) - 1
    return torch.stack([noise, one / two.clamp_min(1e-6), blocks], 1)
