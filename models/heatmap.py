"""Maps of one value per patch, drawn as pictures: a heat map, alone or over the image."""

import io

import numpy as np
from PIL import Image

# Anchors of the colour map, evenly spaced from low to high, sRGB. Lightness (CIE L*) climbs by about the
# same from each to the next (9, 26, 42, 57, 74, 92), so the order shows in gray and to colour-blind eyes too.
ANCHORS = ((12, 22, 58), (20, 62, 118), (10, 108, 130), (22, 155, 132), (132, 200, 92), (250, 236, 110))

PNG_LEVEL = 3  # of zlib: a third of the time of 6; a map of 40 kB becomes one of 53


def render_heat_map(values: np.ndarray, size: tuple[int, int], low: float = 0.0, high: float = 1.0) -> bytes:
    """Draws values as a PNG from dark blue (low and below) over teal to yellow (high and above).

    values: (h, w), any range; not-a-number is drawn as low.  size: (width, height) of the picture in pixels;
    between patches the values, not the colours, are interpolated linearly.
    Raises ValueError when values is not two-dimensional or high does not exceed low.
    """
    # With a palette: a byte per pixel, so a fifth of the time and two thirds of the bytes of RGB.
    picture = Image.fromarray(colour_indices(enlarge_values(values, size, low, high)))
    picture.putpalette(colour_table().tobytes())
    return to_png(picture)


def render_overlay(
    image: np.ndarray, values: np.ndarray, alpha: float = 0.5, low: float = 0.0, high: float = 1.0
) -> bytes:
    """Draws the heat map of values (h, w) over an image (H, W, 3) in [0, 1], as a PNG of the image's size.

    alpha: 0 shows only the image, 1 only the map.  low, high: as in render_heat_map.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is 0 to 1, not {alpha}")
    height, width = image.shape[:2]
    heat = colourise(enlarge_values(values, (width, height), low, high))
    picture = image.clip(0, 1) * 255
    return to_png(Image.fromarray(np.rint(picture + alpha * (heat - picture)).astype(np.uint8)))


def enlarge_values(values: np.ndarray, size: tuple[int, int], low: float, high: float) -> np.ndarray:
    """Values scaled to [0, 1] between low and high, bilinear at (width, height): (H, W) float32."""
    if values.ndim != 2:
        raise ValueError(f"a map is (h, w), not {values.shape}")
    if not high > low:
        raise ValueError(f"high ({high}) must exceed low ({low})")
    share = (np.nan_to_num(values.astype(np.float32), nan=low) - low) / (high - low)
    grid = Image.fromarray(share.clip(0, 1).astype(np.float32))
    return np.asarray(grid.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


def colour_table() -> np.ndarray:
    """The colour map, (256, 3) uint8, linear between the anchors."""
    places = np.linspace(0, 255, len(ANCHORS))
    columns = [np.interp(np.arange(256), places, channel) for channel in zip(*ANCHORS, strict=True)]
    return np.rint(np.stack(columns, axis=-1)).astype(np.uint8)


def colourise(share: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] to (H, W, 3) uint8."""
    return colour_table()[colour_indices(share)]


def colour_indices(share: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] to places in the colour table, uint8."""
    return np.rint(share * 255).astype(np.uint8)


def to_png(picture: Image.Image) -> bytes:
    output = io.BytesIO()
    picture.save(output, "PNG", compress_level=PNG_LEVEL)
    return output.getvalue()
