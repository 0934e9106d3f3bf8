"""The latent: orthogonal, lapped, fitted in closed form."""

import pytest
import torch

from models.codec import CodecConfig, LappedCodec, lapped_prefilter


def smooth_images(count: int = 12, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)


def test_the_prefilter_is_orthogonal():
    prefilter = lapped_prefilter()
    assert (prefilter @ prefilter.T - torch.eye(8)).abs().max() < 1e-6


@pytest.mark.parametrize("lapped", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (8, 40), (8, 8)])
def test_with_all_components_decoding_undoes_encoding(lapped, size):
    codec = LappedCodec(CodecConfig(num_channels=192, lapped=lapped))
    images = smooth_images()
    codec.fit(images, images * 0.9)
    image = torch.rand(2, 3, *size)
    assert (codec.decode(codec.encode(image)) - image).abs().max() < 1e-4


def test_the_kept_components_carry_the_most_energy():
    codec = LappedCodec(CodecConfig(num_channels=64))
    images = smooth_images()
    variances = codec.fit(images, images * 0.9)
    assert (variances.diff() <= 1e-9).all()
    assert ((codec.decode(codec.encode(images)) - images) ** 2).mean() < 1e-4


def test_encoding_is_linear():
    codec = LappedCodec(CodecConfig(num_channels=16))
    codec.fit(smooth_images(), smooth_images() * 0.9)
    a, b = torch.rand(2, 1, 3, 32, 32)
    assert torch.allclose(codec.encode(a - b), codec.encode(a) - codec.encode(b), atol=1e-5)


def test_the_whitened_residual_has_unit_deviation_per_channel():
    codec, images = LappedCodec(CodecConfig(num_channels=16)), smooth_images()
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
    codec.fit(images, blurred)
    residual = codec.to_residual(codec.encode(images), codec.encode(blurred))
    assert torch.allclose(residual.std((0, 2, 3)), torch.ones(16), atol=1e-3)
    assert torch.allclose(codec.from_residual(residual), codec.encode(images) - codec.encode(blurred), atol=1e-5)


def test_noise_in_a_lapped_latent_draws_less_of_a_grid():
    """Why the codec is lapped: the jump across block borders is what a viewer would see."""
    excess = {}
    for lapped in (False, True):
        codec = LappedCodec(CodecConfig(num_channels=16, lapped=lapped))
        codec.fit(smooth_images(), smooth_images() * 0.9)
        image = codec.decode(torch.randn(8, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
        jumps = image.diff(dim=-1).abs().mean((0, 1, 2))
        phases = torch.stack([jumps[k::8].mean() for k in range(8)])
        excess[lapped] = float(phases[7] / phases.mean())
    assert excess[False] > 1.8  # block borders stand out
    assert excess[True] < 0.6 * excess[False]
