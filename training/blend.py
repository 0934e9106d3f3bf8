"""Between two coarse networks of one origin: faithful at 0, sharp at 1 (network interpolation, Wang et al. 2018).

python -m training.blend --faithful FILE --sharp FILE --share S --out FILE
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.routing.coarse import CoarseConfig


def blend(faithful: dict[str, Tensor], sharp: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) faithful + share sharp, tensor by tensor. Sensible if one was trained on from the other.

    Raises ValueError when `share` is not in [0, 1] or the tensors are not of one network.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} must lie in [0, 1]")
    if {n: t.shape for n, t in faithful.items()} != {n: t.shape for n, t in sharp.items()}:
        raise ValueError("the two checkpoints are not of one network: names or shapes differ")
    return {name: torch.lerp(tensor, sharp[name], share) for name, tensor in faithful.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("faithful", "sharp", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--share", type=float, required=True, help="of the sharp one, 0 to 1")
    args = parser.parse_args()
    tensors = blend(read_tensors(args.faithful), read_tensors(args.sharp), args.share)
    save_checkpoint(args.out, tensors, read_config(args.faithful, CoarseConfig))


if __name__ == "__main__":
    main()
