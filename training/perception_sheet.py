"""A contact sheet to look at: HR, LR, segments, depth and DINO features of held-out photographs, side by
side.

    python -m training.perception_sheet --network FILE --photographs FOLDER_WITH_hr_AND_lr --out SHEET.png
    [--count 8]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from models.modalities.perception import PerceptionNet, load_perception
from models.modalities.rendering import render_depth, render_segmentation
from training.pairs import to_batch
from training.targets import read_photograph

CELL = 256  # pixels per picture


def principal_colours(features: torch.Tensor) -> np.ndarray:
    """(1, C, h, w) -> (h, w, 3) in [0, 1]: the first three principal components of this image as red,
    green, blue.
    """
    flat = features[0].flatten(1).T
    flat = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    colours = flat @ directions[:3].T
    low, high = colours.quantile(0.02, dim=0), colours.quantile(0.98, dim=0)
    scaled = ((colours - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return scaled.reshape(*features.shape[-2:], 3).numpy()


@torch.inference_mode()
def picture_row(network: PerceptionNet, hr_image: np.ndarray, lr_image: np.ndarray) -> np.ndarray:
    """hr (H, W, 3), lr (h, w, 3) uint8 -> (CELL, 5 CELL, 3) uint8."""
    seen = network(to_batch([lr_image]))
    pictures = [
        hr_image / 255,
        lr_image / 255,
        render_segmentation(seen.segmentation)[0].permute(1, 2, 0).numpy(),
        render_depth(seen.depth)[0].permute(1, 2, 0).numpy(),
        principal_colours(seen.dino),
    ]
    shrink, grow = cv2.INTER_AREA, cv2.INTER_NEAREST
    cells = [cv2.resize(np.float32(p), (CELL, CELL), interpolation=shrink if len(p) > CELL else grow) for p in pictures]
    return np.round(np.concatenate(cells, axis=1) * 255).astype(np.uint8)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True, help="holds hr/ and the degraded folder")
    parser.add_argument("--degraded", default="lr_real")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    args = parser.parse_args()
    network = load_perception(args.network)
    paths = sorted((args.photographs / args.degraded).iterdir())
    rows = []
    for path in paths[:: max(1, len(paths) // args.count)][: args.count]:
        hr_path = next((args.photographs / "hr").glob(f"{path.stem}.*"))
        rows.append(picture_row(network, read_photograph(hr_path), read_photograph(path)))
    cv2.imwrite(str(args.out), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    main()
