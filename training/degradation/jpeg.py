"""JPEG compression as a torch function (4:2:0, true rounding), batched, with one quality per sample."""

import math

import torch
import torch.nn.functional as F

# ITU-T T.81 Annex K, tables K.1 and K.2.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))

# JFIF full-range BT.601.
RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
YCBCR_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg_compress(image: torch.Tensor, quality: float | torch.Tensor, *, as_encoder: bool = False) -> torch.Tensor:
    """Pass `image` (B, 3, H, W) RGB in [0, 1] through JPEG; same shape and range out.

    `quality` in 1..100, a number or one per sample (B,). Rounding is true, so no gradient passes. Like the
    public reference: input is not rounded to 8 bit first, tables are not rounded, the pad to 16 is black and
    chroma is repeated. With `as_encoder` nearly as libjpeg: whole tables and samples, the border repeated, chroma
    enlarged linearly.
    """
    num_samples, _, height, width = image.shape
    factor = quality_factor(quality, num_samples).to(image)
    padding = (0, -width % 16, 0, -height % 16)
    padded = F.pad((image * 255).round(), padding, mode="replicate") if as_encoder else F.pad(image, padding) * 255
    ycbcr = torch.einsum("yc,bchw->byhw", _matrix(RGB_TO_YCBCR, image), padded)

    def whole(planes: torch.Tensor) -> torch.Tensor:
        return planes.round() if as_encoder else planes

    # Chroma is stored as value + 128 and the DCT takes 128 off again, so only luma is shifted.
    ycbcr = whole(ycbcr)
    luma = _quantise_plane(ycbcr[:, :1] - 128, _steps(_luma_table(image, as_encoder), factor, as_encoder)) + 128
    halved = whole(F.avg_pool2d(ycbcr[:, 1:], 2))
    chroma = _quantise_plane(halved, _steps(_chroma_table(image), factor, as_encoder))
    luma, chroma = whole(luma), whole(chroma)
    if as_encoder:
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    else:
        chroma = chroma.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    rgb = torch.einsum("cy,byhw->bchw", _matrix(YCBCR_TO_RGB, image), torch.cat([luma, chroma], dim=1))
    rgb = rgb.clamp(0, 255)[:, :, :height, :width]
    return whole(rgb) / 255


def quality_factor(quality: float | torch.Tensor, num_samples: int) -> torch.Tensor:
    """Factor on the quantisation tables, (B,): 50 / q below quality 50, else 2 - q / 50."""
    values = torch.as_tensor(quality, dtype=torch.float32).expand(num_samples)
    return torch.where(values < 50, 50 / values, 2 - values / 50)


def _steps(table: torch.Tensor, factor: torch.Tensor, as_encoder: bool) -> torch.Tensor:
    """Quantisation steps of each sample, (B, 1, 1, 1, 8, 8)."""
    steps = table * factor.view(-1, 1, 1, 1, 1, 1)
    return (steps + 0.5).floor().clamp(1, 255) if as_encoder else steps


def _quantise_plane(planes: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """DCT of 8 x 8 blocks, rounding to multiples of the steps, inverse DCT; (B, C, H, W), sides of eight."""
    num_samples, num_channels, height, width = planes.shape
    blocks = planes.reshape(num_samples, num_channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    basis = _dct_basis(planes)
    coefficients = torch.round(basis @ blocks @ basis.T / steps) * steps
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(planes.shape)


def _dct_basis(like: torch.Tensor) -> torch.Tensor:
    """Orthonormal DCT-II matrix, (8 frequencies, 8 positions)."""
    index = torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * index[None, :] + 1) * index[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis.to(like)


def _luma_table(like: torch.Tensor, as_encoder: bool) -> torch.Tensor:
    # The reference applies the table transposed (rows are horizontal frequencies); kept for equality.
    return _matrix(LUMA_TABLE, like) if as_encoder else _matrix(LUMA_TABLE, like).T


def _chroma_table(like: torch.Tensor) -> torch.Tensor:
    table = torch.full((8, 8), 99.0)
    table[:4, :4] = torch.tensor(CHROMA_CORNER)
    return table.to(like)


def _matrix(rows: tuple[tuple[float, ...], ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).to(like)
