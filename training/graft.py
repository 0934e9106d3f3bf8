"""Another coarse network in a profile: the rest stays as it is, though it was trained beside the one before.

    python -m training.graft --coarse FILE --profile DIR --out DIR

Sensible where the new one is nearly the same function, such as its mean with a run that went on from it. The calibrated
uncertainty belongs to the profile before and is not taken along: `training.calibrate` makes another.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.configs import M3ESRConfig
from models.routing.coarse import CoarseConfig

PREFIX = "coarse."


def graft(coarse: Path, profile: Path, out: Path) -> None:
    """Writes `compact.safetensors` and `tokenizer.json` to `out`. Raises ValueError for other files than these."""
    path = profile / "compact.safetensors"
    config = replace(read_config(path, M3ESRConfig), coarse=read_config(coarse, CoarseConfig))
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(PREFIX)}
    tensors |= {PREFIX + name: tensor for name, tensor in read_tensors(coarse).items()}
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out / "compact.safetensors", tensors, config, torch.float16)
    if out != profile:
        shutil.copy(profile / "tokenizer.json", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("coarse", "profile", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    graft(args.coarse, args.profile, args.out)


if __name__ == "__main__":
    main()
