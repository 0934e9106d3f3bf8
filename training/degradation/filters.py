"""Differentiable torch filters of the degradation: reflect-padded filtering and unsharp masking."""

import numpy as np
import torch
import torch.nn.functional as F


def filter2d(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Correlate every channel of `image` (B, C, H, W) with `kernel`, reflect-padded, same size out.

    `kernel` is (k, k) or (1, k, k), shared, or (B, k, k), one per sample; k odd, k // 2 < H, W.
    """
    if kernel.ndim == 2:
        kernel = kernel[None]
    num_samples, num_channels, height, width = image.shape
    kernel_size = kernel.shape[-1]
    if kernel_size % 2 == 0 or kernel.shape[0] not in (1, num_samples):
        raise ValueError(f"kernel {tuple(kernel.shape)} fits no batch of {num_samples}, or has an even side")
    margin = kernel_size // 2
    padded = F.pad(image, (margin, margin, margin, margin), mode="reflect")
    per_plane = kernel.expand(num_samples, -1, -1).repeat_interleave(num_channels, dim=0)
    planes = padded.reshape(1, num_samples * num_channels, *padded.shape[-2:])
    filtered = F.conv2d(planes, per_plane[:, None].to(image), groups=num_samples * num_channels)
    return filtered.view(num_samples, num_channels, height, width)


def gray(image: torch.Tensor) -> torch.Tensor:
    """BT.601 luma of (B, 3, H, W) RGB -> (B, 1, H, W). Factors are numbers: a tensor of them would make a GPU wait."""
    red, green, blue = image.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def separable(image: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """`filter2d` with the outer product of `taps` (k,) with itself, one axis after the other; k odd."""
    for axis in (2, 3):
        kernel = taps.view(1, 1, -1, 1) if axis == 2 else taps.view(1, 1, 1, -1)
        margin = len(taps) // 2
        sides = (0, 0, margin, margin) if axis == 2 else (margin, margin, 0, 0)
        padded = F.pad(image, sides, mode="reflect")
        planes = padded.flatten(0, 1)[:, None]
        image = F.conv2d(planes, kernel).view(image.shape)
    return image


def gaussian_taps(radius: int) -> np.ndarray:
    """Gaussian taps of unsharp masking, float64, odd length >= `radius`, sigma tied to the length.

    sigma = 0.3 ((k - 1) / 2 - 1) + 0.8, OpenCV's rule for a kernel given by size only.
    """
    kernel_size = radius if radius % 2 else radius + 1
    sigma = 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8
    taps = np.exp(-0.5 * ((np.arange(kernel_size) - kernel_size // 2) / sigma) ** 2)
    return taps / taps.sum()


def sharpen(image: torch.Tensor, radius: int = 50, weight: float = 0.5, threshold: float = 10.0) -> torch.Tensor:
    """Unsharp masking of `image` (B, C, H, W) in [0, 1], only where the detail exceeds the threshold.

    `threshold` is in 8-bit steps; the mask of strong detail is blurred so that no seam appears.
    """
    taps = torch.from_numpy(gaussian_taps(radius)).to(image)
    detail = image - separable(image, taps)
    soft_mask = separable((detail.abs() * 255 > threshold).to(image), taps)
    sharpened = (image + weight * detail).clamp(0, 1)
    return soft_mask * sharpened + (1 - soft_mask) * image
