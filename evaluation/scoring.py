"""All scores of one SR image, and means over many."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation import metrics
from evaluation.errors import EvaluationError
from evaluation.lpips import LpipsSqueeze
from evaluation.niqe import Niqe
from evaluation.paper_metrics import PaperMetrics


@dataclass(frozen=True)
class Column:
    """How a score is shown. better: 1 higher, -1 lower, 0 neither."""

    title: str
    digits: int
    better: int


COLUMNS = {
    "psnr_y": Column("PSNR-Y", 2, 1),
    "ssim_y": Column("SSIM-Y", 3, 1),
    "lpips_squeeze": Column("LPIPS-squeeze", 4, -1),
    "niqe": Column("NIQE", 2, -1),
    "gmsd": Column("GMSD", 3, -1),
    "grid": Column("grid", 3, -1),
    "lr_consistency": Column("LR consistency", 1, 1),
    "lpips": Column("LPIPS", 4, -1),
    "liqe": Column("LIQE", 4, 1),
    "wadiqam": Column("WaDIQaM", 4, 1),
    "musiq": Column("MUSIQ", 2, 1),
    "clipiqa": Column("CLIPIQA", 4, 1),
    "hyperiqa": Column("HyperIQA", 4, 1),
    "seconds": Column("s per image", 3, -1),
    "memory_mb": Column("peak MB", 0, -1),
}


class Scorer:
    """The metrics asked for, loaded once.

    lpips: weights of LPIPS-squeeze, `.npz`; niqe: pristine parameters, `.npz`; None leaves the metric out.
    identity: changes with whatever changes the scores, for caches.
    """

    def __init__(self, lpips: Path | None = None, niqe: Path | None = None, paper: PaperMetrics | None = None):
        self.lpips = load_lpips(lpips) if lpips else None
        self.niqe = Niqe(niqe) if niqe else None
        self.paper = paper
        parts = {"lpips": file_sha256(lpips), "niqe": file_sha256(niqe), "paper": str(paper is not None)}
        self.identity = hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()

    def __call__(self, sr: metrics.Image, hr: metrics.Image, lr: metrics.Image | None = None) -> dict[str, float]:
        """Scores of an SR image against the HR image of the same size, (H, W, 3) uint8; lr: what it was made from."""
        row = {
            "psnr_y": metrics.psnr_y(sr, hr),
            "ssim_y": metrics.ssim_y(sr, hr),
            "psnr_rgb": metrics.psnr(sr, hr),
            "gmsd": metrics.gmsd(sr, hr),
            "grid": metrics.grid_excess(sr, hr),
        }
        if self.lpips is not None:
            with torch.inference_mode():
                pair = (torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255 for x in (sr, hr))
                row["lpips_squeeze"] = float(self.lpips(*pair))
        if self.niqe is not None:
            row["niqe"] = self.niqe(sr)
        if lr is not None:
            reduced = Image.fromarray(sr).resize((lr.shape[1], lr.shape[0]), Image.Resampling.BICUBIC)
            row["lr_consistency"] = metrics.psnr(np.asarray(reduced), lr)
        if self.paper is not None:
            row |= self.paper(sr, hr)
        return row


def load_lpips(path: Path) -> LpipsSqueeze:
    try:
        network = LpipsSqueeze(path)
        network.tensor("net.slice1.0.weight")
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path} holds no weights of LPIPS-squeeze (an .npz): {error}") from error
    return network


def file_sha256(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mean_scores(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the images that have it; NaN (a flat image has no NIQE) is left out, infinity is not."""
    collected: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if not math.isnan(value):
                collected.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in collected.items()}
