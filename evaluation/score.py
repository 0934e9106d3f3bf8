"""Scores a folder of SR images against its HR images.

    python -m evaluation.score --sr DIR --hr DIR [--lr DIR] [--lpips FILE] [--json FILE]

Files pair by stem. PSNR-Y and SSIM-Y with a 4 px border cut; LPIPS has the SqueezeNet backbone and needs its weights
as `.npz`; LR consistency is the RGB PSNR of the SR image, reduced by bicubic, against the LR image.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation import metrics
from evaluation.lpips import LpipsSqueeze

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def score_pair(
    sr: np.ndarray, hr: np.ndarray, lr: np.ndarray | None, perceptual: LpipsSqueeze | None
) -> dict[str, float]:
    """All scores of one image; sr and hr are (H, W, 3) uint8 of equal size."""
    row = {
        "psnr_y": metrics.psnr_y(sr, hr),
        "ssim_y": metrics.ssim_y(sr, hr),
        "gmsd": metrics.gmsd(sr, hr),
        "grid": metrics.grid_excess(sr, hr),
    }
    if perceptual is not None:
        with torch.inference_mode():
            pair = (torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255 for x in (sr, hr))
            row["lpips_squeeze"] = float(perceptual(*pair))
    if lr is not None:
        reduced = Image.fromarray(sr).resize((lr.shape[1], lr.shape[0]), Image.Resampling.BICUBIC)
        row["lr_consistency"] = metrics.psnr(np.asarray(reduced), lr)
    return row


def score_folder(sr: Path, hr: Path, lr: Path | None, perceptual: LpipsSqueeze | None) -> dict[str, object]:
    """{"images", "mean", "rows"}. Raises ValueError when an HR image has no SR image, or another size."""
    found = {folder: images(folder) for folder in (sr, hr, *([lr] if lr else []))}
    missing = sorted(set(found[hr]) - set(found[sr]))
    if missing:
        raise ValueError(
            f"{sr} has no image for {len(missing)} of {len(found[hr])} HR images, the first is {missing[0]}"
        )
    rows = {}
    for stem, path in found[hr].items():
        a, b = read(found[sr][stem]), read(path)
        if a.shape != b.shape:
            raise ValueError(f"{stem}: SR is {a.shape[1]}x{a.shape[0]}, HR is {b.shape[1]}x{b.shape[0]}")
        rows[stem] = score_pair(a, b, read(found[lr][stem]) if lr and stem in found[lr] else None, perceptual)
    names = next(iter(rows.values()))
    mean = {name: round(float(np.mean([row[name] for row in rows.values()])), 4) for name in names}
    return {"images": len(rows), "mean": mean, "rows": rows}


def images(folder: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sr", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--lr", type=Path)
    parser.add_argument("--lpips", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        result = score_folder(args.sr, args.hr, args.lr, LpipsSqueeze(args.lpips) if args.lpips else None)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(result["images"], "images ", "  ".join(f"{k} {v}" for k, v in result["mean"].items()))


if __name__ == "__main__":
    main()
