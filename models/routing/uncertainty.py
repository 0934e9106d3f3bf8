"""The uncertainty map: where a regression network and plain interpolation disagree (Eq. 13)."""

import torch.nn.functional as F
from torch import Tensor

PATCH_SIZE = 16  # HR pixels: the grid of tokens, 4 x 4 LR pixels


def estimate_uncertainty(coarse_sr: Tensor, upscaled_lr: Tensor, patch_size: int = PATCH_SIZE) -> Tensor:
    """U = |coarse_sr - upscale(lr)|, summed over RGB, averaged over each patch (Eq. 13).

    coarse_sr: (B, 3, H, W) in [0, 1].  upscaled_lr: the bicubic upscale of the LR image, same shape.
    Returns (B, 1, h, w) with h = ceil(H / patch_size), values in [0, 3].  Raises ValueError on two shapes.

    Left open by the paper, and what is done here:
    - Pooling: the router takes one value per patch. Here the mean; a patch cut by the border averages the
      pixels it has.
    - Normalisation: none is written and none is done, so 0.1 means the same in every image.
    - The norm: Eq. 13 writes ||.||_1 and gives one value per patch, not over which axis; here over RGB.
    - Up-Scale: not named; the caller passes the bicubic upscale that also feeds the LR latent.
    """
    if coarse_sr.shape != upscaled_lr.shape:
        raise ValueError(f"coarse_sr is {tuple(coarse_sr.shape)}, upscaled_lr {tuple(upscaled_lr.shape)}")
    difference = (coarse_sr - upscaled_lr).abs().sum(dim=1, keepdim=True)
    return F.avg_pool2d(difference, patch_size, ceil_mode=True, count_include_pad=False)
