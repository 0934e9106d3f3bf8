"""One process of a run over several, as `accelerate launch -m` starts it: trains, and leaves what it has."""

import sys
from pathlib import Path

import torch

from tests.unit.models.seesr_tiny import TAGGER
from training.published.__main__ import options_of, parse, recipe_of
from training.published.fidelity import FidelityBackbone
from training.published.run import BACKBONES, FusionRun, start_accelerator


def main() -> None:
    BACKBONES["fidelity"] = FidelityBackbone(TAGGER)
    chosen = parse(sys.argv[1:])
    options = options_of(chosen)
    run = FusionRun(options, recipe_of(chosen), start_accelerator(options.device))
    run.train()
    rank = run.accelerator.process_index
    torch.save(run.trained.state_dict(), Path(options.out) / f"rank{rank}.pt")
    run.accelerator.end_training()


if __name__ == "__main__":
    main()
