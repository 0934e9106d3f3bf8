"""Another coarse or detail network in a profile: the rest stays as it is, though it was trained beside the one before.

    python -m training.graft [--coarse FILE] [--detail FILE] --profile DIR --out DIR

Sensible where the new one is nearly the same function, such as its mean with a run that went on from it. The calibrated
uncertainty belongs to the profile before and is not taken along: `training.calibrate` makes another.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.configs import M3ESRConfig
from models.routing.coarse import CoarseConfig
from training.parts import put_part

PARTS = ("coarse", "detail")


def graft(parts: Mapping[str, Path], profile: Path, out: Path) -> None:
    """Writes `compact.safetensors` and `tokenizer.json` to `out`, with the file of each of PARTS that is named.

    Raises ValueError for other files than these.
    """
    path = profile / "compact.safetensors"
    configs = {part: read_config(file, CoarseConfig) for part, file in parts.items()}
    config, tensors = replace(read_config(path, M3ESRConfig), **configs), read_tensors(path)
    for part, file in parts.items():
        tensors = put_part(tensors, part, read_tensors(file))
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out / "compact.safetensors", tensors, config, torch.float16)
    if out != profile:
        shutil.copy(profile / "tokenizer.json", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in PARTS:
        parser.add_argument(f"--{part}", type=Path)
    for name in ("profile", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    parts = {part: file for part in PARTS if (file := getattr(args, part)) is not None}
    if not parts:
        parser.error("name the network that the profile shall have: --coarse FILE, --detail FILE or both")
    try:
        graft(parts, args.profile, args.out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
