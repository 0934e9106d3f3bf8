"""The preview: what the coarse network saw, in its place, and without a trace in the result."""

import numpy as np
import pytest
import torch

from models.preview import MAX_PREVIEW_SIDE, PreviewCanvas
from models.requests import UpscaleOptions
from tests.unit.models.test_pipeline import picture
from tests.unit.models.tiny import tiny_upscaler


@pytest.fixture(scope="module")
def upscaler():
    return tiny_upscaler()


def previews_of(upscaler, lr_image, options=None):
    told = []
    result = upscaler.upscale(
        lr_image,
        options or UpscaleOptions(),
        on_preview=lambda preview: told.append((preview.image.copy(), preview.fraction)),
    )
    return result, told


def test_the_result_is_the_same_with_and_without(upscaler):
    lr_image = picture(20, 230)  # two regions
    result, told = previews_of(upscaler, lr_image)
    plain = upscaler.upscale(lr_image, UpscaleOptions())
    assert np.array_equal(result.sr_image, plain.sr_image)
    assert all(np.array_equal(result.maps[name], plain.maps[name]) for name in plain.maps)
    assert [fraction for _, fraction in told] == [0.5, 1.0]


def test_the_preview_of_one_region_is_its_coarse_image(upscaler):
    lr_image = picture(32, 32)
    _, [(image, fraction)] = previews_of(upscaler, lr_image)
    coarse = upscaler.network.coarse(torch.from_numpy(lr_image).permute(2, 0, 1)[None]).clamp(0, 1)
    assert (image.shape, fraction) == ((128, 128, 3), 1.0)
    assert np.allclose(image, coarse[0].permute(1, 2, 0).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "options", "shape"),
    [
        ((1, 1), {}, (4, 4)),
        ((5, 17), {}, (20, 68)),
        ((20, 30), {"width": 45, "height": 70}, (70, 45)),
        ((8, 512), {}, (16, MAX_PREVIEW_SIDE)),
    ],
)
def test_a_preview_has_the_size_of_the_answer_or_is_capped(upscaler, size, options, shape):
    result, told = previews_of(upscaler, picture(*size), UpscaleOptions(**options))
    assert told[-1][1] == 1.0
    assert all(image.shape == (*shape, 3) and image.min() >= 0 and image.max() <= 1 for image, _ in told)
    assert result.sr_image.shape[0] >= shape[0]


def test_grey_stays_grey(upscaler):
    grey = np.repeat(picture(20, 20)[..., :1], 3, 2)
    _, [(image, _)] = previews_of(upscaler, grey)
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()


def test_each_region_lands_in_its_place_and_the_rest_is_interpolated():
    told = []
    lr_image = torch.full((1, 3, 10, 40), 0.25)
    lr_image[:, 0] = 0.5  # not grey
    canvas = PreviewCanvas(lr_image, (80, 20), 2, lambda preview: told.append(preview.image.copy()))
    canvas.add(0, 20, torch.ones(1, 3, 48, 96), 4)  # 12 x 24 LR pixels from column 20: overhangs both borders
    assert (told[0][:, 40:] == 1).all()
    assert np.allclose(told[0][:, :40], [0.5, 0.25, 0.25])
