"""`m3esr bench`: seconds per stage after warm-up, peak memory, and a peer run in turns with ours."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.data import to_bytes
from evaluation.methods import Upscale
from evaluation.production import peak_memory_mb
from evaluation.report import Table, machine
from models.pipeline import Upscaler
from models.requests import UpscaleOptions

STAGES = ("coarse", "perception", "routing", "denoising", "output")


@dataclass(frozen=True)
class Bench:
    """What to time: an LR image (H, W, 3) in [0, 1], `repeats` times after `warm_ups` unmeasured ones."""

    upscaler: Upscaler
    lr_image: NDArray[np.float32]
    options: UpscaleOptions
    repeats: int = 7
    warm_ups: int = 1
    peers: dict[str, Upscale] = field(default_factory=dict)
    clock: Callable[[], float] = perf_counter

    def run(self, on_step: Callable[[int, int], None] = lambda *_: None) -> dict[str, Any]:
        """Seconds per stage and of the whole, memory, and each peer's seconds, as JSON.

        Ours and the peers take turns, so that what else the machine does meanwhile falls on all alike.
        """
        lr_bytes = to_bytes(self.lr_image)
        seconds: dict[str, list[float]] = {}
        reset_peak_memory()
        memory_mb, result = 0.0, None
        for round_number in range(self.warm_ups + self.repeats):
            is_measured = round_number >= self.warm_ups
            started = self.clock()
            result = self.upscaler.upscale(self.lr_image, self.options)
            taken = {**result.timings, "whole": self.clock() - started}
            if round_number == 0:
                memory_mb = peak_memory_mb()  # before any peer runs
            for name, upscale in self.peers.items():
                started = self.clock()
                upscale(lr_bytes)
                taken[f"peer {name}"] = self.clock() - started
            for name, value in taken.items() if is_measured else ():
                seconds.setdefault(name, []).append(value)
            on_step(round_number + 1, self.warm_ups + self.repeats)
        assert result is not None
        summary = {name: summarise(values) for name, values in seconds.items()}
        whole = summary["whole"]["median"]
        return {
            "machine": machine(),
            "model": self.upscaler.describe(),
            "preset": self.options.preset,
            "num_steps": result.num_steps,
            "lr_size": [self.lr_image.shape[1], self.lr_image.shape[0]],
            "sr_size": [result.sr_image.shape[1], result.sr_image.shape[0]],
            "repeats": self.repeats,
            "peak_memory_mb": memory_mb,
            "seconds": summary,
            "times_peer": {name: whole / summary[f"peer {name}"]["median"] for name in self.peers},
        }


def summarise(values: list[float]) -> dict[str, float]:
    """Median and spread: quartiles and extremes, of a handful of runs."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": median, "low": low, "high": high, "min": min(values), "max": max(values)}


def bench_table(found: dict[str, Any]) -> Table:
    """Stages in the order in which they run, then the whole and the peers."""
    seconds, whole = found["seconds"], found["seconds"]["whole"]["median"]
    names = [*(n for n in STAGES if n in seconds), "whole", *(n for n in seconds if n.startswith("peer "))]
    rows = tuple(
        (
            name,
            f"{seconds[name]['median']:.4f}",
            f"{seconds[name]['low']:.4f} to {seconds[name]['high']:.4f}",
            f"{seconds[name]['min']:.4f}",
            f"{seconds[name]['median'] / whole:.0%}",
        )
        for name in names
    )
    model, sizes = found["model"], "{}x{} -> {}x{}".format(*found["lr_size"], *found["sr_size"])
    notes = [
        f"{model['profile']}, preset {found['preset']}, {found['num_steps']} steps, {model['dtype']} on "
        f"{model['device']}, {found['machine']['threads']} threads, {found['machine']['processor']}",
        f"peak memory {found['peak_memory_mb']:.0f} MB, of the whole process",
        *(f"{times:.2f} times {name}" for name, times in found["times_peer"].items()),
    ]
    title = f"{sizes}, {found['repeats']} runs in turns"
    return Table(title, ("stage", "median s", "quartiles", "fastest", "of the whole"), rows, tuple(notes))


def reset_peak_memory() -> None:
    """Lets the peak of this process begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def make_lr_image(photograph: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A square of `side` pixels filled with the photograph, mirrored where it ends."""
    height, width = photograph.shape[:2]
    rows = np.abs((np.arange(side) + height - 1) % max(1, 2 * height - 2) - height + 1)
    columns = np.abs((np.arange(side) + width - 1) % max(1, 2 * width - 2) - width + 1)
    return np.ascontiguousarray(photograph[rows][:, columns])


def use_threads(threads: int | None) -> int:
    """Sets, if asked, how many threads torch and the peers take; how many there are now."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
