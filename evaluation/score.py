"""Scores a folder of SR images against its HR images.

    python -m evaluation.score --sr DIR --hr DIR [--lr DIR] [--lpips FILE] [--niqe FILE] [--json FILE]

Files pair by stem. PSNR-Y and SSIM-Y with a 4 px border cut; LPIPS has the SqueezeNet backbone and needs its weights
as `.npz`, NIQE its pristine parameters; LR consistency is the RGB PSNR of the SR image, reduced by bicubic, against the
LR image. `m3esr evaluate` does the same for several methods at once.
"""

import argparse
import json
import sys
from pathlib import Path

from evaluation.data import find_images, read_image
from evaluation.errors import EvaluationError
from evaluation.scoring import Scorer, mean_scores


def score_folder(sr: Path, hr: Path, lr: Path | None, scorer: Scorer) -> dict[str, object]:
    """{"images", "mean", "rows"}. Raises EvaluationError when an HR image has no SR image, or another size."""
    found = {folder: find_images(folder) for folder in (sr, hr, *([lr] if lr else []))}
    missing = sorted(set(found[hr]) - set(found[sr]))
    if missing:
        raise EvaluationError(
            f"{sr} has no image for {len(missing)} of {len(found[hr])} HR images, the first is {missing[0]}"
        )
    rows = {}
    for stem, path in found[hr].items():
        a, b = read_image(found[sr][stem]), read_image(path)
        if a.shape != b.shape:
            raise EvaluationError(f"{stem}: SR is {a.shape[1]}x{a.shape[0]}, HR is {b.shape[1]}x{b.shape[0]}")
        rows[stem] = scorer(a, b, read_image(found[lr][stem]) if lr and stem in found[lr] else None)
    mean = {name: round(value, 4) for name, value in mean_scores(rows.values()).items()}
    return {"images": len(rows), "mean": mean, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sr", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True)
    for name in ("lr", "lpips", "niqe", "json"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    try:
        result = score_folder(args.sr, args.hr, args.lr, Scorer(args.lpips, args.niqe))
    except (EvaluationError, OSError) as error:
        sys.exit(str(error))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(result["images"], "images ", "  ".join(f"{k} {v}" for k, v in result["mean"].items()))


if __name__ == "__main__":
    main()
