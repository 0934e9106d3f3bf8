"""Seconds a step and peak memory of fusion training, on random weights: whether it fits, before any download."""

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evaluation.memory import GIB, SD35
from evaluation.speed import SIDE, TEXT_TOKENS, synchronise
from models.backbones.quality import Schedule
from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer
from models.runs import resolve_device
from training.loop import LoopConfig, Trainer
from training.published.cache import FusionBatch
from training.published.recipe import literal
from training.published.stage import (
    Draws,
    FusedDenoiser,
    FusionLoss,
    TrainedParameters,
    build_fusion,
    choose_training_dtype,
)

NUM_STEPS, NUM_WARM = 10, 2
MAP_CHANNELS, DINO_CHANNELS = 256, 768  # VQGAN f16, DINOv3 ViT-B
DRY = "Dry run at tiny size on a CPU: it shows that the steps run. These are no figures of anything."


@dataclass(frozen=True)
class Cost:
    """peak: bytes of memory that torch held on the GPU, at its highest; None elsewhere."""

    seconds: float
    peak: int | None


def measure(device: str, batch_size: int, precision: str = "auto") -> str:
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
    config, side = (SD35, SIDE) if is_real else (tiny_config(), 8)
    lines = [torch.cuda.get_device_name(place) + f", batch {batch_size}, 512 px, {dtype}" if is_real else DRY]
    lines.append(f"{'checkpointing':>14} {'seconds a step':>15} {'peak GiB':>9}")
    for checkpointing in (False, True):
        try:
            cost = run_steps(replace(config, fused=True), side, batch_size, place, dtype, checkpointing)
            peak = "-" if cost.peak is None else f"{cost.peak / GIB:.1f}"
            seconds = f"{cost.seconds:.3f}"
        except torch.OutOfMemoryError:
            seconds, peak = "-", "too much"
        lines.append(f"{'on' if checkpointing else 'off':>14} {seconds:>15} {peak:>9}")
        gc.collect()  # the network of this row must be gone before the next
        if is_real:
            torch.cuda.empty_cache()
    return "\n".join(lines)


def tiny_config() -> DenoiserConfig:
    return replace(
        SD35,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        dual_attention_layers=(0,),
    )


def random_batch(config: DenoiserConfig, side: int, batch_size: int) -> FusionBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch_size, *shape, generator=generator)

    grid = side // 2, side // 2
    maps = {name: draw(MAP_CHANNELS, *grid) for name in ("segmentation", "depth", "edge")}
    return FusionBatch(
        clean=draw(config.in_channels, side, side),
        lr_latent=draw(config.in_channels, side, side),
        small=draw(3, 2 * side, 2 * side).sigmoid(),
        uncertainty=draw(1, *grid).abs(),
        modalities=maps | {"dino": draw(DINO_CHANNELS, *grid)},
        text_embeddings=draw(TEXT_TOKENS, config.joint_attention_dim),
        pooled=draw(config.pooled_projection_dim),
    )


def run_steps(
    config: DenoiserConfig,
    side: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    checkpointing: bool,
) -> Cost:
    """The very steps of a run: optimiser, average and all, without files."""
    recipe, batch = literal(), random_batch(config, side, batch_size)
    with device:
        denoiser = DiffusionTransformer(config).to(dtype)
        denoiser.drop_dead_weights()
        denoiser.init_fused_from_control()
        fusion = build_fusion(recipe, denoiser, batch)
    if checkpointing:
        denoiser.checkpoint_blocks()
    network = FusedDenoiser(denoiser, fusion)
    losses = FusionLoss(network, recipe, Schedule())
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
