"""Seconds a step and peak memory of fusion training, on random weights: whether it fits, before any download."""

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.memory import GIB
from evaluation.speed import SIDE, synchronise
from models.runs import resolve_device
from training.loop import LoopConfig, Trainer
from training.published.cache import FusionBatch
from training.published.recipe import recipe_for
from training.published.run import BACKBONES
from training.published.stage import Draws, FusionLoss, TrainedParameters, choose_training_dtype

NUM_STEPS, NUM_WARM = 10, 2
TINY_SIDE = 8  # latent cells
MAP_CHANNELS, DINO_CHANNELS = 256, 768  # VQGAN f16, DINOv3 ViT-B
DRY = "Dry run at tiny size on a CPU: it shows that the steps run. These are no figures of anything."


@dataclass(frozen=True)
class Cost:
    """peak: bytes of memory that torch held on the GPU, at its highest; None elsewhere."""

    seconds: float
    peak: int | None


def measure(profile: str, device: str, batch_size: int, precision: str = "auto") -> str:
    """A table of both ways. On a CPU it is a dry run at tiny size, and says so.

    Raises ValueError on an unknown device, a precision that it has not, or a batch under 1.
    """
    place = resolve_device(device)
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} must be at least 1")
    is_real = place.type == "cuda"
    if is_real and not torch.cuda.is_available():
        raise ValueError("there is no CUDA GPU here; use --device cpu for a dry run")
    dtype = choose_training_dtype(precision, place)
    lines = [f"{torch.cuda.get_device_name(place)}, {profile}, batch {batch_size}, 512 px, {dtype}" if is_real else DRY]
    lines.append(f"{'checkpointing':>14} {'seconds a step':>15} {'peak GiB':>9}")
    for checkpointing in (False, True):
        try:
            cost = run_steps(profile, batch_size, place, dtype, is_tiny=not is_real, checkpointing=checkpointing)
            peak = "-" if cost.peak is None else f"{cost.peak / GIB:.1f}"
            seconds = f"{cost.seconds:.3f}"
        except torch.OutOfMemoryError:
            seconds, peak = "-", "too much"
        lines.append(f"{'on' if checkpointing else 'off':>14} {seconds:>15} {peak:>9}")
        gc.collect()  # the network of this row must be gone before the next
        if is_real:
            torch.cuda.empty_cache()
    return "\n".join(lines)


def random_batch(shapes: dict[str, tuple[int, ...]], batch_size: int) -> FusionBatch:
    """shapes: of one sample, "clean" (C, h, w) and what the backbone is told."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch_size, *shape, generator=generator)

    height, width = shapes["clean"][1:]
    grid = height // 2, width // 2
    maps = {name: draw(MAP_CHANNELS, *grid) for name in ("segmentation", "depth", "edge")}
    return FusionBatch(
        clean=draw(*shapes["clean"]),
        lr_latent=draw(*shapes["clean"]),
        small=draw(3, 2 * height, 2 * width).sigmoid(),
        uncertainty=draw(1, *grid).abs(),
        modalities=maps | {"dino": draw(DINO_CHANNELS, *grid)},
        conditions={name: draw(*shape) for name, shape in shapes.items() if name != "clean"},
    )


def run_steps(
    profile: str, batch_size: int, device: torch.device, dtype: torch.dtype, *, is_tiny: bool, checkpointing: bool
) -> Cost:
    """The very steps of a run: optimiser, average and all, without files."""
    backbone, recipe = BACKBONES[profile], recipe_for(profile)
    denoiser = backbone.random(device, dtype, is_tiny=is_tiny)
    batch = random_batch(backbone.random_conditions(denoiser, TINY_SIDE if is_tiny else SIDE), batch_size)
    with device:
        network = backbone.fuse(denoiser, recipe, batch)
    if checkpointing:
        network.checkpoint()
    losses = FusionLoss(network, recipe, backbone.objective(None))
    batch = batch.to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        loop = LoopConfig(num_steps=NUM_STEPS, minutes=1e9, learning_rate=recipe.learning_rate, betas=recipe.betas)
        trainer = Trainer(TrainedParameters(network), loop, Path(folder), batch_size)
        seconds = []
        for number in range(NUM_WARM + NUM_STEPS):
            synchronise(device)
            started = time.perf_counter()
            trainer.learn(lambda _, number=number: losses(batch, Draws(0, 0, number)))
            synchronise(device)
            seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Cost(statistics.median(seconds[NUM_WARM:]), peak)
