"""Proves the profile `quality` at full size with random weights: numerics, speed, memory, cost of a training step.

    python -m evaluation.full_size --device cuda --out DIR     about a minute of one GPU with 60 GiB
    python -m evaluation.full_size --out DIR                   a dry run at tiny size on the CPU

Figures are printed and written to DIR/full_size.json as they come. A section that fails, or has spent its time, says
why in one line, and the next begins. Exit code 1: a section failed; 2: the input is wrong.
"""

import argparse
import faulthandler
import gc
import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.full_size.record import Deadline, Record, Row, Section

if TYPE_CHECKING:
    from evaluation.full_size.setting import Setting

STARTED = time.monotonic()  # before torch is imported, which takes seconds of the time that is given
GRACE = 5.0  # seconds beyond the time given, after which the process ends where it stands
DRY = "Dry run at tiny size on a CPU: it shows that the sections run. These are no figures of anything."
NAMES = ("numerics", "passes", "profile", "vae", "training")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.full_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu (a dry run at tiny size) or cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder of full_size.json")
    parser.add_argument("--seconds", type=float, default=75.0, help="of all, from the start of the process (75)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these sections (default: all)")
    return parser.parse_args(arguments)


def sections(setting: "Setting") -> list[Section]:
    """A module is imported when its section begins: what it lacks is that section's error."""

    def rows(module: str) -> Callable[[Deadline], Generator[Row, None, None]]:
        return lambda deadline: import_module(f"evaluation.full_size.{module}").rows(setting, deadline)

    found = [
        Section("numerics", rows("numerics"), budget=20),
        Section("passes", rows("passes"), budget=22),
        Section("profile", rows("profile"), budget=32),
        Section("vae", rows("vae"), budget=8, least=1),
        Section("training", rows("training_cost"), budget=25, least=6),
    ]
    return found if setting.is_real else [replace(section, budget=math.inf) for section in found]


def describe(setting: "Setting") -> dict[str, Any]:
    import torch

    if not setting.is_real:
        return {"about": DRY, "torch": torch.__version__}
    name = torch.cuda.get_device_name(setting.device)
    gib = round(torch.cuda.get_device_properties(setting.device).total_memory / 2**30, 1)
    dtype = str(setting.dtype).removeprefix("torch.")
    return {"about": "quality at full size, random weights", "device": name, "gib": gib, "dtype": dtype} | {
        "torch": torch.__version__
    }


def main(arguments: Sequence[str] | None = None, started: float | None = None) -> int:
    chosen = parse(arguments)
    started = time.monotonic() if started is None else started
    import torch

    from evaluation.full_size.setting import TINY, Setting, Size
    from models.runs import resolve_device

    try:
        device = resolve_device(chosen.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    is_real = device.type == "cuda"
    if is_real and not torch.cuda.is_available():
        print("there is no CUDA GPU here; leave --device out for a dry run", file=sys.stderr)
        return 2
    setting = Setting(device, Size() if is_real else TINY)

    def clean_up() -> None:
        gc.collect()
        if is_real:
            torch.cuda.empty_cache()

    chosen.out.mkdir(parents=True, exist_ok=True)
    about = describe(setting)
    print(*about.values(), f"ready after {time.monotonic() - started:.1f} s", sep="; ", flush=True)
    record = Record(chosen.out / "full_size.json", about, partial(print, flush=True))
    wanted = [section for section in sections(setting) if section.name in chosen.only]
    return 0 if record.run(wanted, started + chosen.seconds, clean_up) else 1


if __name__ == "__main__":
    given = parse(None).seconds
    faulthandler.dump_traceback_later(given + GRACE, exit=True)
    code = main(started=STARTED)
    faulthandler.cancel_dump_traceback_later()
    sys.exit(code)
