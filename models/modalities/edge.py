"""The edge modality: Canny's binary edge map."""

import cv2
import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # BT.601, what OpenCV means by gray


def canny_edges(image: Tensor, low: int = 100, high: int = 200) -> Tensor:
    """Edges of an RGB image after Canny (aperture 3, L1 gradient).

    image: (B, 3, H, W) in [0, 1].  low, high: hysteresis thresholds on 8-bit gradients; the paper names
    Canny and no thresholds, 100 and 200 are the usual ones.
    Returns (B, 1, H, W) of 0.0 and 1.0, same dtype and device.
    """
    luma = torch.einsum("bchw,c->bhw", image.float(), torch.tensor(LUMA, device=image.device))
    gray = luma.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    edges = np.stack([cv2.Canny(plane, low, high) for plane in gray])
    return torch.from_numpy(edges > 0)[:, None].to(image.device, image.dtype)
