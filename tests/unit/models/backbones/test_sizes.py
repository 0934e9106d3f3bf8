import numpy as np
import pytest
import torch
from PIL import Image

from models.backbones.sizes import enlarge, work_sizes


@pytest.mark.parametrize(
    ("lr", "upscale", "expected"),
    [
        ((128, 128), 4, ((128, 128), (512, 512), (512, 512))),
        ((64, 100), 4, ((128, 200), (512, 800), (512, 800))),
        ((300, 131), 4, ((300, 131), (1200, 524), (1200, 520))),
        ((300, 127), 4, ((302, 128), (1208, 512), (1208, 512))),
        ((49, 49), 4, ((127, 127), (508, 508), (504, 504))),  # 128 / 49 * 49 is below 128 in floating point
        ((170, 170), 3, ((170, 170), (510, 510), (504, 504))),
        ((1, 1), 4, ((128, 128), (512, 512), (512, 512))),
        ((400, 600), 1.5, ((400, 600), (600, 900), (600, 896))),
    ],
)
def test_the_published_rule(lr, upscale, expected):
    sizes = work_sizes(*lr, upscale)
    assert (sizes.lr, sizes.upscaled, sizes.work) == expected


@pytest.mark.parametrize(("size", "upscale"), [((0, 5), 4), ((5, 5), 0.5), ((5, 5), 1000)])
def test_sizes_that_make_no_sense_are_refused(size, upscale):
    with pytest.raises(ValueError, match=r"empty|outside"):
        work_sizes(*size, upscale)


def test_enlarging_gives_the_numbers_of_pillow_but_for_its_rounding():
    # no value near 0 or 255: Pillow clips overshoot between its two passes, too
    pixels = np.random.default_rng(0).integers(80, 170, (40, 23, 3), np.uint8)
    sizes = work_sizes(40, 23, 4)
    official = Image.fromarray(pixels)
    for height, width in (sizes.lr, sizes.upscaled, sizes.work):
        official = official.resize((width, height), Image.Resampling.BICUBIC)
    ours = enlarge(torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None], sizes)[0].permute(1, 2, 0) * 255
    assert ours.shape == np.asarray(official).shape
    assert np.abs(ours.numpy() - np.asarray(official)).max() < 2.5
