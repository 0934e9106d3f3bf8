"""A larger coarse network that starts as the same function as a smaller trained one.

python -m training.widening --init FILE --widths 64 128 192 --num-blocks 2 2 6 --out FILE
"""

import argparse
from dataclasses import replace
from operator import gt
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.routing.coarse import CoarseConfig, CoarseNetwork


def widen(tensors: dict[str, Tensor], old: CoarseConfig, new: CoarseConfig) -> CoarseNetwork:
    """A network of config `new` with the weights of one of config `old`; both give the same image.

    Every trained kernel lies in the corner of the wider one; what the added channels send to the old ones is zero, so
    they begin as spectators. Added blocks begin as the identity. Raises ValueError when `new` is smaller somewhere.
    """
    sizes = [(*config.widths, *config.num_blocks) for config in (old, new)]
    if len(sizes[0]) != len(sizes[1]) or old.scale != new.scale or any(map(gt, *sizes)):
        raise ValueError(f"{new} is not {old} with more channels or blocks")
    network = CoarseNetwork(new)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name not in tensors:
                continue
            kept = tensors[name]
            if name.startswith("ups."):  # its outputs are shuffled: 4 neighbours in a row are one channel
                tensor, kept = tensor.unflatten(0, (-1, 4)), kept.unflatten(0, (-1, 4))
            if kept.dim() > 1:
                tensor[: kept.shape[0]] = 0
                inner = 2 if name.startswith("ups.") and kept.dim() > 2 else 1
                index = (slice(kept.shape[0]), *(slice(None),) * (inner - 1), slice(kept.shape[inner]))
                tensor[index] = kept
            else:
                tensor[: kept.shape[0]] = kept
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("init", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("widths", "num-blocks"):
        parser.add_argument(f"--{name}", type=int, nargs="+", required=True, help="per level")
    parser.add_argument("--seed", type=int, default=0, help="of the added channels, which begin as spectators")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    old = read_config(args.init, CoarseConfig)
    new = replace(old, widths=tuple(args.widths), num_blocks=tuple(args.num_blocks))
    save_checkpoint(args.out, widen(read_tensors(args.init), old, new).state_dict(), new)


if __name__ == "__main__":
    main()
