"""Maps as pictures: the form in which the fusion's map encoder, made for RGB images, sees segments and
depth (Sec. 3.2).
"""

import colorsys

import torch
from torch import Tensor


def segment_palette(num_segments: int) -> Tensor:
    """(S, 3) colours in [0, 1], the same on every call: hues by golden-angle steps, three levels of light
    in turn.

    The paper does not give its palette; neighbouring class numbers get far colours so that a soft mixture
    stays readable.
    """
    hues = [(0.61803398875 * k) % 1.0 for k in range(num_segments)]
    levels = [(0.85, 0.95), (0.60, 0.75), (0.95, 0.55)]  # saturation, value
    return torch.tensor([colorsys.hsv_to_rgb(hue, *levels[k % 3]) for k, hue in enumerate(hues)])


def render_segmentation(logits: Tensor) -> Tensor:
    """logits (B, S, H, W) -> (B, 3, H, W) in [0, 1]: the classes' colours mixed by probability.

    A soft mixture, so that an unsure pixel looks unsure and gradients can pass.
    """
    palette = segment_palette(logits.shape[1]).to(logits)
    return torch.einsum("bshw,sc->bchw", logits.softmax(dim=1), palette).clamp(0, 1)


def render_depth(depth: Tensor) -> Tensor:
    """Relative inverse depth (B, 1, H, W) in [0, 1] -> grey (B, 3, H, W) in [0, 1], closer is brighter."""
    return depth.clamp(0, 1).expand(-1, 3, -1, -1)
