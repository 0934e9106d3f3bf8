"""Reads fixture folders, prints the largest difference of each tensor, and says whether all are within 1e-4.

The tolerance is absolute; where another is right, it stands beside the difference with its reason in the code.

    python -m evaluation.parity FOLDER...

Exit code 0: all within; 1: a tensor is further away; 2: a folder is not known or broken, told in one line.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluation.parity.colour import compare_colour, is_colour
from evaluation.parity.degradation import compare_degradation, is_degradation
from evaluation.parity.difference import TOLERANCE, Difference, Kind, UnknownFolderError
from evaluation.parity.realesrgan import compare_network, is_network
from evaluation.parity.seesr import compare_seesr, is_seesr
from evaluation.parity.transformer import compare_pipeline, compare_transformer, is_pipeline, is_transformer

KINDS = (
    Kind("DiT4SR transformer", is_transformer, compare_transformer),
    Kind("DiT4SR sampling loop", is_pipeline, compare_pipeline),
    Kind("SeeSR", is_seesr, compare_seesr),
    Kind("Real-ESRGAN", is_network, compare_network),
    Kind("colour correction", is_colour, compare_colour),
    Kind("degradation", is_degradation, compare_degradation),
)


def find_kind(folder: Path) -> Kind:
    """Raises UnknownFolderError when the files of the folder are those of no kind."""
    if not folder.is_dir():
        raise UnknownFolderError(f"{folder} is no folder")
    kind = next((kind for kind in KINDS if kind.is_it(folder)), None)
    if kind is None:
        known = ", ".join(kind.name for kind in KINDS)
        raise UnknownFolderError(f"{folder} is no fixture of a known kind ({known})")
    return kind


@torch.no_grad()
def run_folder(folder: Path) -> list[Difference]:
    """Everything compared in one folder. Raises UnknownFolderError."""
    kind = find_kind(folder)
    try:
        return list(kind.compare(folder))
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        told = f"{folder} is a broken fixture of {kind.name} ({type(error).__name__}: {reason})"
        raise UnknownFolderError(told) from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.parity", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    folders = parser.parse_args(arguments).folders
    is_within = True
    for folder in folders:
        try:
            differences = run_folder(folder)
        except UnknownFolderError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        print(f"{folder} ({find_kind(folder).name}), tolerance {TOLERANCE:g}")
        for found in differences:
            allowed = f"  (allowed {found.allowed:.2e})" if found.scale != 1 else ""
            print(f"  {found.largest:.3e}  {found.name}{allowed}{'' if found.is_within else '  TOO FAR'}")
        num_far = sum(not found.is_within for found in differences)
        print(f"  {len(differences)} tensors, {num_far} too far")
        is_within = is_within and num_far == 0
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
