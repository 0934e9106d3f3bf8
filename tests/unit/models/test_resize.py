"""Resizing equals Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.resize import resize

SIZES = [(148, 212), (13, 20), (111, 60), (1, 1), (300, 7)]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def smooth_image(height: int = 37, width: int = 53) -> np.ndarray:
    """(H, W, 3) uint8 well inside 0..255: Pillow rounds and clips 8-bit images between its two passes."""
    noise = np.random.default_rng(0).integers(64, 192, (height, width, 3))
    return noise.astype(np.uint8)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("mode", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_an_8_bit_image_comes_out_within_one_level_of_pillow(size, mode):
    image = smooth_image()
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], FILTERS[mode])).astype(int)
    resized = (resize(to_tensor(image), size, mode).clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(resized - expected).max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_a_float_image_equals_pillows_float_filter(size):
    plane = np.random.default_rng(1).random((37, 53), dtype=np.float32)
    expected = np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC))
    resized = resize(torch.from_numpy(plane)[None, None], size)[0, 0].numpy()
    assert np.abs(resized - expected).max() < 1e-5


def test_a_constant_stays_constant_and_one_pixel_can_grow():
    assert torch.allclose(resize(torch.full((2, 3, 9, 5), 0.3), (36, 21)), torch.tensor(0.3), atol=1e-6)
    assert torch.allclose(resize(torch.full((1, 3, 1, 1), 0.7), (4, 6)), torch.tensor(0.7), atol=1e-6)


def test_half_precision_comes_back_as_it_went_in():
    assert resize(torch.rand(1, 3, 8, 8).bfloat16(), (16, 16)).dtype == torch.bfloat16


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="lanczos"):
        resize(torch.rand(1, 3, 8, 8), (16, 16), "lanczos")
    with pytest.raises(ValueError, match="0 x 4"):
        resize(torch.rand(1, 3, 8, 8), (0, 4))
