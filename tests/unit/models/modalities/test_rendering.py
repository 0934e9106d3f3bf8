"""Maps as pictures: palettes and ranges."""

import torch

from models.modalities.rendering import render_depth, render_segmentation, segment_palette


def test_palette_is_fixed_distinct_and_in_range():
    palette = segment_palette(32)
    assert torch.equal(palette, segment_palette(32))
    assert palette.min() >= 0
    assert palette.max() <= 1
    distance = torch.cdist(palette, palette) + torch.eye(32)
    assert distance.min() > 0.03


def test_a_class_keeps_its_colour_when_classes_are_added():
    assert torch.equal(segment_palette(8), segment_palette(21)[:8])


def test_a_certain_pixel_has_its_class_colour_and_an_unsure_one_the_mixture():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = 100
    rendered = render_segmentation(logits)
    palette = segment_palette(2)
    assert torch.allclose(rendered[0, :, 0, 0], palette[1])
    assert torch.allclose(rendered[0, :, 0, 1], palette.mean(0))


def test_pictures_are_in_range_for_any_logits():
    rendered = render_segmentation(torch.randn(2, 21, 8, 8) * 50)
    assert rendered.shape == (2, 3, 8, 8)
    assert rendered.min() >= 0
    assert rendered.max() <= 1


def test_depth_is_grey_and_closer_is_brighter():
    rendered = render_depth(torch.tensor([0.0, 0.4, 1.0]).view(1, 1, 1, 3))
    assert rendered.shape == (1, 3, 1, 3)
    assert torch.equal(rendered[:, 0], rendered[:, 2])
    assert (rendered[0, 0, 0].diff() > 0).all()
