"""A pass of the denoiser beside diffusers' stock transformer (`evaluation.speed`), in time and in memory."""

from collections.abc import Generator

import torch

from evaluation import speed
from evaluation.full_size.record import Deadline, Row
from evaluation.full_size.setting import Setting, watch_peak
from models.backbones.memory import GIB, needed_bytes

ROUNDS = 11


def rows(setting: Setting, deadline: Deadline) -> Generator[Row, None, None]:
    """Batch 2, as guidance needs. Memory is what a pass takes beside the weights."""
    size, device = setting.size, setting.device
    arguments = ["--device", device.type, "--batch", "2", "--rounds", str(ROUNDS if setting.is_real else 2)]
    chosen = speed.parse([*arguments, "--full"] if setting.is_real else [*arguments, "--fused"])
    config = None if setting.is_real else size.denoiser
    with torch.inference_mode():
        passes = speed.runs(chosen, device, speed.DTYPES[chosen.dtype], config, size.side)
    deadline.check()
    timings = speed.measure(passes, chosen.rounds, device)
    for timing in timings:
        told = f"{timing.median / timings[0].median:.3f} of stock; {timing.tflop:.2f} TFLOP"
        told += f", {timing.tflop / timing.median:.0f} a second; at least {1000 * timing.least:.1f} ms"
        yield Row(f"a pass: {timing.name}", "ms", 1000 * timing.median, note=told)
    for name, run in passes.items():
        with torch.inference_mode(), watch_peak(device) as peak:
            run()
        is_computed = setting.is_real and name == "ours r1, fused"
        computed = needed_bytes("denoise", size.side) / GIB if is_computed else None
        yield Row(f"memory of a pass: {name}", "GiB", peak.num_bytes / GIB, computed)
