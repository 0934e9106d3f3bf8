"""The latent of `compact`: a lapped orthogonal transform followed by PCA, fitted in closed form, with nothing to train.

The paper encodes with the VAE of its backbone. Here an 8x8 RGB block becomes one latent vector (f8, as SD3.5's VAE) by
1. a lapped pre-filter across block borders (Tran, Liang, Tu 2003: P = W diag(I, V) W), which makes the synthesis
   functions reach into the neighbouring blocks and end smoothly, so that errors in the latent draw no 8 px grid;
2. a projection of the 192 samples on their leading principal components.
Both are orthogonal: encoding the whole basis and decoding it returns the image to rounding error.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    num_channels: int = 64  # principal components kept, of 192
    lapped: bool = True


class LappedCodec(nn.Module):
    """Image (B, 3, H, W), H and W multiples of 8, <-> latent (B, C, H/8, W/8).

    `latent_std` are the per-channel deviations of latents of photographs, `residual_std` those of (HR - bicubic LR).
    """

    basis: Tensor
    mean: Tensor
    latent_std: Tensor
    residual_std: Tensor
    prefilter: Tensor

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        channels = config.num_channels
        self.register_buffer("basis", torch.eye(3 * BLOCK**2)[:channels].clone())
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        self.register_buffer("residual_std", torch.ones(channels))
        prefilter = lapped_prefilter() if config.lapped else torch.eye(BLOCK)
        self.register_buffer("prefilter", prefilter, persistent=False)

    def encode(self, image: Tensor) -> Tensor:
        """Raw latent, not normalised; linear in the image. Deterministic: there is no posterior to sample."""
        blocks = F.pixel_unshuffle(self.filter(image, self.prefilter), BLOCK)
        return F.conv2d(blocks, self.basis[:, :, None, None])

    def decode(self, latent: Tensor) -> Tensor:
        """The image whose latent this is, from the kept components."""
        blocks = F.conv2d(latent, self.basis.T[:, :, None, None])
        return self.filter(F.pixel_shuffle(blocks, BLOCK), self.prefilter.T)

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw latent of an image -> zero mean and unit deviation per channel over photographs."""
        return (latent - self.mean[:, None, None]) / self.latent_std[:, None, None]

    def to_residual(self, latent: Tensor, lr_latent: Tensor) -> Tensor:
        """Raw latents of an image and of the upscaled LR -> what the sampler moves: their whitened difference."""
        return (latent - lr_latent) / self.residual_std[:, None, None]

    def from_residual(self, residual: Tensor) -> Tensor:
        """Whitened difference -> difference of raw latents."""
        return residual * self.residual_std[:, None, None]

    @staticmethod
    def filter(image: Tensor, matrix: Tensor) -> Tensor:
        """Applies the 8x8 `matrix` to the samples around each inner block border, along both axes."""
        for axis in (-1, -2):
            image = image.transpose(axis, -1)
            if image.shape[-1] > BLOCK:
                half = BLOCK // 2
                inner = image[..., half:-half].unflatten(-1, (-1, BLOCK)) @ matrix.T
                image = torch.cat([image[..., :half], inner.flatten(-2), image[..., -half:]], -1)
            image = image.transpose(axis, -1)
        return image

    @torch.no_grad()
    def fit(self, hr_images: Tensor, lr_upscaled: Tensor) -> Tensor:
        """Fits basis and statistics on HR images and their upscaled LR (both (B, 3, H, W)); returns the variances."""
        blocks = F.pixel_unshuffle(self.filter(hr_images, self.prefilter), BLOCK)
        samples = blocks.permute(0, 2, 3, 1).reshape(-1, 3 * BLOCK**2).double()
        centred = samples - samples.mean(0)
        variances, vectors = torch.linalg.eigh(centred.T @ centred / len(samples))
        self.basis.copy_(vectors.flip(1).T[: self.config.num_channels].float())
        latent = self.encode(hr_images)
        self.mean.copy_(latent.mean((0, 2, 3)))
        self.latent_std.copy_(latent.std((0, 2, 3)))
        self.residual_std.copy_((latent - self.encode(lr_upscaled)).std((0, 2, 3)))
        return variances.flip(0)


def lapped_prefilter() -> Tensor:
    """The orthogonal 8x8 filter P = W diag(I, V) W across a block border, with V = J C_II^T C_IV J (the LOT)."""
    half = BLOCK // 2
    index = torch.arange(half, dtype=torch.float64)
    dct2 = torch.cos(torch.pi * index[:, None] * (index[None, :] + 0.5) / half) * (2 / half) ** 0.5
    dct2[0] /= 2**0.5
    dct4 = torch.cos(torch.pi * (index[:, None] + 0.5) * (index[None, :] + 0.5) / half) * (2 / half) ** 0.5
    flip, eye = torch.eye(half, dtype=torch.float64).flip(0), torch.eye(half, dtype=torch.float64)
    rotation = flip @ dct2.T @ dct4 @ flip
    butterfly = torch.cat([torch.cat([eye, flip], 1), torch.cat([flip, -eye], 1)]) / 2**0.5
    middle = torch.block_diag(eye, rotation)
    return (butterfly @ middle @ butterfly).float()
