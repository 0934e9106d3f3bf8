"""Draws what one photograph became: input, result, expert weights and uncertainty side by side.

python -m evaluation.figure IN -o OUT.png [--side PX]
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.heatmap import render_heat_map
from models.imageio import ImageDecodeError, decode_image
from models.pipeline import Upscaler
from models.requests import UpscaleOptions, UpscaleResult

LABEL_HEIGHT, GAP = 22, 6


def draw_figure(lr_image: np.ndarray, result: UpscaleResult, side: int) -> Image.Image:
    """One row of panels, each `side` px wide; weights are drawn from 0 to 1, uncertainty to its 99th percentile."""
    height = round(side * lr_image.shape[0] / lr_image.shape[1])
    size = (side, height)
    panels = [
        ("input", to_picture(lr_image).resize(size, Image.Resampling.NEAREST)),
        ("result, x4", to_picture(result.sr_image).resize(size, Image.Resampling.LANCZOS)),
    ]
    for name in (*(n for n in result.maps if not n.startswith("uncertainty")), "uncertainty"):
        values = result.maps[name]
        high = float(np.quantile(values, 0.99)) if name == "uncertainty" else 1.0
        heat = Image.open(io.BytesIO(render_heat_map(values, size, 0.0, max(high, 1e-6)))).convert("RGB")
        panels.append((f"{name}, mean {values.mean():.2f}", heat))
    figure = Image.new("RGB", (len(panels) * (side + GAP) - GAP, height + LABEL_HEIGHT), "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(13)
    for k, (label, panel) in enumerate(panels):
        figure.paste(panel, (k * (side + GAP), LABEL_HEIGHT))
        pen.text((k * (side + GAP) + 2, 3), label, "black", font)
    return figure


def to_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    try:
        lr_image = decode_image(args.input).pixels
    except (ImageDecodeError, OSError) as error:
        sys.exit(str(error))
    result = Upscaler.load().upscale(lr_image, UpscaleOptions())
    draw_figure(lr_image, result, args.side).save(args.output)


if __name__ == "__main__":
    main()
