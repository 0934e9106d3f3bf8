"""Heat maps: order, range and place of what is drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from models.heatmap import ANCHORS, colour_table, render_heat_map, render_overlay


def open_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))  # heat maps carry a palette


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of (n, 3) sRGB bytes."""
    share = colours / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


def test_lightness_climbs_steadily_so_the_order_is_seen_without_colour():
    steps = np.diff(lightness(colour_table()[::15]))
    assert steps.min() > 2.5
    assert steps.max() < 8


def test_low_and_high_are_the_ends_and_what_lies_beyond_is_clipped():
    values = np.array([[-7.0, 2.0], [4.0, 99.0]])
    picture = open_png(render_heat_map(values, (2, 2), low=2, high=4))
    assert picture.tolist() == [[list(ANCHORS[0]), list(ANCHORS[0])], [list(ANCHORS[-1]), list(ANCHORS[-1])]]


def test_the_picture_has_the_size_asked_for_and_the_map_the_right_way_up():
    values = np.zeros((4, 6), np.float32)
    values[0, 5] = 1  # upper right
    picture = open_png(render_heat_map(values, (60, 40)))
    assert picture.shape == (40, 60, 3)
    brightest = np.unravel_index(picture.sum(axis=2).argmax(), (40, 60))
    assert brightest[0] < 10 and brightest[1] > 50


def test_between_patches_it_is_smooth():
    row = open_png(render_heat_map(np.array([[0.0, 1.0]]), (200, 1)))[0]
    assert (np.diff(lightness(row)) > -0.5).all()
    assert len(np.unique(row, axis=0)) > 90


def test_not_a_number_is_drawn_as_low():
    picture = open_png(render_heat_map(np.array([[np.nan, np.inf, -np.inf]]), (3, 1)))
    assert picture[0].tolist() == [list(ANCHORS[0]), list(ANCHORS[-1]), list(ANCHORS[0])]


def test_an_overlay_goes_from_the_image_to_the_map():
    image, values = np.random.default_rng(0).random((20, 30, 3)), np.random.default_rng(1).random((2, 3))
    assert np.array_equal(open_png(render_overlay(image, values, 0)), np.rint(image * 255))
    heat = open_png(render_heat_map(values, (30, 20)))
    assert np.array_equal(open_png(render_overlay(image, values, 1)), heat)
    middle = open_png(render_overlay(image, values, 0.5)).astype(float)
    assert np.abs(middle - (image * 255 + heat) / 2).max() <= 1


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="exceed"):
        render_heat_map(np.zeros((2, 2)), (4, 4), low=1, high=1)
    with pytest.raises(ValueError, match="map is"):
        render_heat_map(np.zeros((2, 2, 1)), (4, 4))
    with pytest.raises(ValueError, match="alpha"):
        render_overlay(np.zeros((4, 4, 3)), np.zeros((2, 2)), 2)
