"""Stage 1b: a coarse network between a faithful and a perceptual one, by interpolating their weights.

    python -m training.blend --faithful FILE --perceptual FILE --share 0.5 --out FILE [--pairs DIR --lpips FILE]

Works because the perceptual network was trained from the faithful one. With --pairs, shares of 0 to 1 are scored on
the photographs held out of training, which is how the share is chosen.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.scoring import Scorer, mean_scores
from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.routing.coarse import CoarseConfig, CoarseNetwork
from training.pairs import PairDataset


def interpolate(faithful: dict[str, Tensor], perceptual: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * faithful + share * perceptual, tensor by tensor."""
    return {name: torch.lerp(tensor, perceptual[name], share) for name, tensor in faithful.items()}


@torch.inference_mode()
def score_holdout(network: CoarseNetwork, dataset: PairDataset, scorer: Scorer) -> dict[str, float]:
    rows = []
    for lr_image, hr_image in dataset.holdout():
        sr, hr, lr = (to_uint8(x) for x in (network(lr_image[None])[0], hr_image, lr_image))
        rows.append(scorer(sr, hr, lr))
    return mean_scores(rows)


def to_uint8(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("faithful", "perceptual", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--share", type=float, required=True, help="of the perceptual network, 0..1")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--lpips", type=Path)
    args = parser.parse_args()
    config = read_config(args.faithful, CoarseConfig)
    ends = read_tensors(args.faithful), read_tensors(args.perceptual)
    if args.pairs and args.lpips:
        network, dataset, scorer = CoarseNetwork(config).eval(), PairDataset(args.pairs), Scorer(args.lpips)
        for share in (0.0, 0.3, 0.5, 0.7, 1.0):
            network.load_state_dict(interpolate(*ends, share))
            scores = score_holdout(network, dataset, scorer)
            print(f"share {share:.1f}  " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
    save_checkpoint(args.out, interpolate(*ends, args.share), config)


if __name__ == "__main__":
    main()
