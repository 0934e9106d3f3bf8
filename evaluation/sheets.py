"""Pictures side by side: LR, the methods, HR, each under its name, one sheet per image."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from evaluation.data import Pair, spread
from evaluation.runner import MethodResult
from evaluation.scoring import COLUMNS

LABEL_HEIGHT, GAP, COLUMNS_PER_ROW = 26, 6, 4
TOLD = ("psnr_y", "lpips_squeeze")


def write_sheets(folder: Path, pairs: list[Pair], results: Sequence[MethodResult], count: int) -> list[Path]:
    """Sheets of `count` pairs, spread evenly; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for pair in spread(pairs, count):
        path = folder / f"{pair.stem}.png"
        draw_sheet(pair, results).save(path)
        written.append(path)
    return written


def draw_sheet(pair: Pair, results: Sequence[MethodResult]) -> Image.Image:
    """Panels at the size of the HR image, no pixel resampled but the LR image's, which is shown as squares."""
    with Image.open(pair.hr) as image:
        hr = image.convert("RGB")
    with Image.open(pair.lr) as image:
        panels = [("LR", image.convert("RGB").resize(hr.size, Image.Resampling.NEAREST))]
    for result in results:
        with Image.open(result.outputs[pair.stem]) as image:
            panels.append((label(result, pair.stem), image.convert("RGB")))
    panels.append(("HR", hr))
    columns = min(COLUMNS_PER_ROW, len(panels))
    rows = -(-len(panels) // columns)
    width, height = hr.width + GAP, hr.height + LABEL_HEIGHT
    sheet = Image.new("RGB", (columns * width - GAP, rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for k, (text, panel) in enumerate(panels):
        left, top = k % columns * width, k // columns * height
        sheet.paste(panel, (left, top + LABEL_HEIGHT))
        pen.text((left + 3, top + 4), text, "black", font)
    return sheet


def label(result: MethodResult, stem: str) -> str:
    scores = result.rows[stem]
    told = (f"{COLUMNS[name].title} {scores[name]:.{COLUMNS[name].digits}f}" for name in TOLD if name in scores)
    return "  ".join([result.method.name, *told])
