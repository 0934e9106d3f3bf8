"""Trains the fusion of `quality` or `fidelity`: router, experts, temperatures, projections. The backbone stays.

    python -m training.published --models-dir ROOT --pairs DIR --out DIR
    python -m training.published --profile fidelity --models-dir ROOT --pairs DIR --out DIR
    accelerate launch --num_processes 2 -m training.published --models-dir ROOT --pairs DIR --out DIR
    python -m training.published --measure

OUT/fusion_r1.safetensors (beside SeeSR OUT/fusion.safetensors) is the result, OUT/state.pt where a run that was cut
off goes on. Exit code 2: the input is wrong, told in one line; 1: training failed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from training.published.measure import measure
from training.published.recipe import PROFILES, RECIPES, FusionRecipe, recipe_for
from training.published.run import FusionRun, RunOptions, start_accelerator

STOPPED = "stopped; the same command goes on from what was saved last"
ADVICE = "memory ran out: use --checkpointing, a smaller --batch-size or --precision bf16"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.published", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=sorted(PROFILES), default="quality", help="whose fusion (quality)")
    parser.add_argument("--models-dir", type=Path, help="holds the public weights, as m3esr models pull writes them")
    parser.add_argument("--pairs", type=Path, help="folder of training.pairs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--features", type=Path, help="what the frozen networks see, kept (default: OUT/features)")
    parser.add_argument("--captions", type=Path, help='JSON {"name of the photograph": "caption"}; default: no words')
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="literal")
    parser.add_argument("--weights", help="of quality: dit4sr_r1 (default), dit4sr_q or dit4sr_f")
    parser.add_argument("--modalities", help="names with commas between them; default: all four")
    parser.add_argument("--num-steps", type=int)
    parser.add_argument("--total-batch", type=int, help="images per step of all processes (16)")
    parser.add_argument("--batch-size", type=int, default=1, help="images of one pass of one process")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-minutes", type=float, default=30.0)
    parser.add_argument("--measure", action="store_true", help="seconds a step and memory on random weights, no files")
    return parser.parse_args(arguments)


def recipe_of(chosen: argparse.Namespace) -> FusionRecipe:
    """The named recipe with what was asked for beside it. Raises ValueError on values that make no sense."""
    changes = {
        name: getattr(chosen, name)
        for name in ("weights", "num_steps", "total_batch", "learning_rate")
        if getattr(chosen, name) is not None
    }
    for name in ("num_steps", "total_batch", "learning_rate"):
        if changes.get(name, 1) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0")
    if chosen.modalities is not None:
        changes["modalities"] = tuple(name.strip() for name in chosen.modalities.split(","))
    return replace(recipe_for(chosen.profile, chosen.recipe), **changes)


def options_of(chosen: argparse.Namespace) -> RunOptions:
    """Raises ValueError when something is missing, or out of range."""
    lacking = [f"--{name.replace('_', '-')}" for name in ("models_dir", "pairs", "out") if not getattr(chosen, name)]
    if lacking:
        raise ValueError(f"{', '.join(lacking)} must be given (see --help)")
    if chosen.log_every < 1 or chosen.save_minutes <= 0:
        raise ValueError("--log-every and --save-minutes must be above 0")
    return RunOptions(**{field.name: getattr(chosen, field.name) for field in fields(RunOptions)})


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    try:
        if chosen.measure:
            print(measure(chosen.profile, chosen.device, chosen.batch_size, chosen.precision))
            return 0
        recipe, options = recipe_of(chosen), options_of(chosen)
        run = FusionRun(options, recipe, start_accelerator(options.device))
    except ModuleNotFoundError as error:
        return fail(f"'{error.name}' is not installed: pip install 'm3esr[worker,diffusion,training]'", 2)
    except (ValueError, OSError) as error:
        return fail(str(error), 2)
    except torch.OutOfMemoryError:
        return fail(ADVICE, 1)
    except KeyboardInterrupt:
        return fail(STOPPED, 130)
    try:
        run.train()
    except torch.OutOfMemoryError:
        return fail(ADVICE, 1)
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(str(error), 1)
    except KeyboardInterrupt:
        return fail(STOPPED, 130)
    if run.accelerator.is_main_process:
        print(run.fusion_path)
    run.accelerator.end_training()
    return 0


def fail(message: str, code: int) -> int:
    sys.stderr.write(f"{' '.join(message.split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
