"""Colour correction: gives a super-resolved image the colours of its low-resolution source."""

import torch
from torch import Tensor

METHODS = ("wavelet", "adain", "none")
NUM_LEVELS = 5  # blur radii 1, 2, 4, 8, 16: what is coarser than about 60 px is colour, the rest is detail
VARIANCE_FLOOR = 1e-5  # keeps a flat channel from being divided by zero


def correct_colour(sr_image: Tensor, reference: Tensor, method: str = "wavelet") -> Tensor:
    """Moves the colours of sr_image to those of reference and keeps the detail of sr_image.

    sr_image: (B, C, H, W) RGB in [0, 1].  reference: the upscaled LR image, (B, C, H, W); "adain" takes
    any H and W.  method: "wavelet" (local: low frequencies are exchanged), "adain" (global: mean and
    standard deviation per channel) or "none".
    Returns a new (B, C, H, W) in [0, 1], without gradient unless "none".
    Raises ValueError on an unknown method or shapes that do not fit.
    The paper names no colour correction; DiT4SR and SeeSR, its two backbones, ship these two.
    """
    if method == "wavelet":
        return wavelet(sr_image, reference).clamp_(0, 1)
    if method == "adain":
        return adain(sr_image, reference).clamp_(0, 1)
    if method == "none":
        return sr_image.clamp(0, 1)
    raise ValueError(f"unknown colour correction {method!r}; known: {', '.join(METHODS)}")


@torch.no_grad()
def adain(sr_image: Tensor, reference: Tensor) -> Tensor:
    """Matches mean and standard deviation of each channel over the whole image, unclamped.

    sr_image: (B, C, H, W).  reference: (B, C, any, any).  Returns (B, C, H, W).
    """
    if sr_image.shape[:2] != reference.shape[:2]:
        raise ValueError(f"adain needs equal batch and channels: {sr_image.shape[:2]}, {reference.shape[:2]}")
    sr_mean, sr_deviation = channel_statistics(sr_image)
    reference_mean, reference_deviation = channel_statistics(reference)
    return (sr_image - sr_mean).mul_(reference_deviation / sr_deviation).add_(reference_mean)


def channel_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of (B, C, H, W), both (B, C, 1, 1)."""
    pixels = image.flatten(2)
    mean = pixels.mean(dim=2)
    # The unbiased variance of a single pixel is 0 / 0; one pixel has no spread.
    variance = pixels.var(dim=2) if pixels.shape[2] > 1 else torch.zeros_like(mean)
    return mean[..., None, None], (variance + VARIANCE_FLOOR).sqrt()[..., None, None]


@torch.no_grad()
def wavelet(sr_image: Tensor, reference: Tensor) -> Tensor:
    """High frequencies of sr_image plus low frequencies of reference, unclamped.

    sr_image, reference: (B, C, H, W).  Returns (B, C, H, W).
    """
    if sr_image.shape != reference.shape:
        raise ValueError(f"wavelet needs images of one shape: {sr_image.shape} and {reference.shape}")
    corrected = sr_image.clone()
    # sr - low(sr) + low(reference) = sr + low(reference - sr), because the blur is linear: half the work,
    # and an image that needs no correction comes back unchanged. One plane at a time: two planes of
    # scratch, however large the image and however many its levels.
    for plane, target in zip(corrected.flatten(0, 1), reference.flatten(0, 1), strict=True):
        plane += low_frequencies(target - plane)
    return corrected


def low_frequencies(plane: Tensor, num_levels: int = NUM_LEVELS) -> Tensor:
    """What num_levels of the a-trous transform leave of a plane (H, W). Overwrites the plane."""
    scratch = torch.empty_like(plane)
    for level in range(num_levels):
        blur_axis(plane, scratch, radius=2**level)
        blur_axis(scratch.T, plane.T, radius=2**level)
    return plane


def blur_axis(source: Tensor, target: Tensor, radius: int) -> None:
    """Filters the columns of source (H, W) with [1 2 1] / 4 spread to radius, edges repeated, into target."""
    reach = min(radius, source.shape[0])  # past the far edge only the edge row is left to read
    torch.mul(source, 0.5, out=target)
    target[reach:].add_(source[: source.shape[0] - reach], alpha=0.25)
    target[:reach].add_(source[:1], alpha=0.25)
    target[: source.shape[0] - reach].add_(source[reach:], alpha=0.25)
    target[source.shape[0] - reach :].add_(source[-1:], alpha=0.25)
