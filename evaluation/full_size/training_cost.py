"""What a step of fusion training costs beside the profile: `training.published --measure`, into the same table."""

from collections.abc import Generator

import torch

from evaluation.full_size.record import Deadline, Row
from evaluation.full_size.setting import Setting
from models.backbones.memory import GIB
from models.denoising.transformer import DiffusionTransformer
from models.fusion.joint import JointFusion
from training.published.measure import Cost, run_steps

TRAINED_BYTES, FROZEN_BYTES = 20, 2  # weight, gradient, two moments, average in float32; bfloat16


def computed_bytes(setting: Setting) -> int:
    """Weights, gradients, moments and average, before any activation: as docs/training.md counts them."""
    with torch.device("meta"):
        denoiser = DiffusionTransformer(setting.size.denoiser)
        denoiser.drop_dead_weights()
        fusion = JointFusion(setting.size.fusion, denoiser)
    fused = sum(p.numel() for name, p in denoiser.named_parameters() if "_fused." in name)
    trained = fused + sum(p.numel() for p in fusion.parameters())
    frozen = sum(p.numel() for p in denoiser.parameters()) - fused
    return TRAINED_BYTES * trained + FROZEN_BYTES * frozen


def rows(setting: Setting, deadline: Deadline) -> Generator[Row, None, None]:
    """Batch 1 at 512 px; without checkpointing first."""
    for checkpointing in (False, True):
        name = f"training, checkpointing {'on' if checkpointing else 'off'}"
        try:
            cost = run_steps(
                "quality", 1, setting.device, setting.dtype, is_tiny=not setting.is_real, checkpointing=checkpointing
            )
        except torch.OutOfMemoryError:
            cost = Cost(float("nan"), None)
        yield Row(f"{name}: a step", "s", cost.seconds, note="batch 1, 512 px" if setting.is_real else "")
        peak = float("nan") if cost.peak is None else cost.peak / GIB
        computed = computed_bytes(setting) / GIB if setting.is_real else None
        yield Row(f"{name}: memory", "GiB", peak, computed, "computed: before any activation")
        if setting.is_real:
            torch.cuda.empty_cache()
        deadline.check()
