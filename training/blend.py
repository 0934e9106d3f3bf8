"""Between two networks of one origin: interpolation (Wang et al. 2018), weight averaging (Izmailov et al. 2018).

    python -m training.blend --first FILE --second FILE --share S --out FILE

Files are coarse or detail networks, or whole profiles (`compact.safetensors`); one was trained on from the other, or
both from a third. The mean of two runs is often better than either on photographs that neither has seen.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.configs import M3ESRConfig
from models.routing.coarse import CoarseConfig


def blend(first: dict[str, Tensor], second: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) first + share second, tensor by tensor.

    Raises ValueError when `share` is not in [0, 1] or the tensors are not of one network.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} must lie in [0, 1]")
    if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
        raise ValueError("the two checkpoints are not of one network: names or shapes differ")
    return {name: torch.lerp(tensor, second[name], share) for name, tensor in first.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("first", "second", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--share", type=float, required=True, help="of the second, 0 to 1")
    args = parser.parse_args()
    tensors = read_tensors(args.first)
    is_profile = any(name.startswith("denoiser.") for name in tensors)
    config = read_config(args.first, M3ESRConfig if is_profile else CoarseConfig)
    blended = blend(tensors, read_tensors(args.second), args.share)
    save_checkpoint(args.out, blended, config, torch.float16 if is_profile else None)


if __name__ == "__main__":
    main()
