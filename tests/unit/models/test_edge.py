"""Canny's edge map."""

import pytest
import torch

from models.modalities.edge import canny_edges


def test_a_step_gives_one_thin_line_and_flat_areas_none():
    image = torch.zeros(2, 3, 16, 20)
    image[1, :, :, 10:] = 1
    edges = canny_edges(image)
    assert edges.shape == (2, 1, 16, 20)
    assert not edges[0].any()
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert (edges[1, 0, 2:-2].sum(dim=1) == 1).all()
    assert edges[1, 0, 8].argmax() in (9, 10)


def test_a_faint_step_is_below_the_thresholds():
    image = torch.zeros(1, 3, 16, 20)
    image[..., 10:] = 0.05
    assert not canny_edges(image).any()
    assert canny_edges(image, low=10, high=20).any()


def test_green_weighs_more_than_red_and_red_more_than_blue():
    faint, strong = torch.zeros(2, 3, 3, 16, 20)
    for channel in range(3):
        faint[channel, channel, :, 10:] = 0.4
        strong[channel, channel, :, 10:] = 0.8
    assert canny_edges(faint).flatten(1).any(dim=1).tolist() == [False, True, False]
    assert canny_edges(strong).flatten(1).any(dim=1).tolist() == [True, True, False]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 2)])
def test_any_size_and_type_comes_back(size):
    edges = canny_edges(torch.rand(1, 3, *size, dtype=torch.float64))
    assert edges.shape == (1, 1, *size)
    assert edges.dtype == torch.float64
