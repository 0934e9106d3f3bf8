"""Where and at which size is measured, and how memory is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from evaluation.speed import FULL, SIDE, synchronise
from models.backbones.dit4sr import TABLE_SIDE
from models.backbones.sizes import PROCESS_SIDE
from models.backbones.stock import StockSizes, stock_clip, stock_t5, stock_vae
from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer
from models.fusion.experts import FusionConfig
from models.fusion.joint import JointFusion, JointFusionConfig
from models.routing.realesrgan import RRDBNet, RRDBNetConfig

DENOISER = replace(FULL, pos_embed_max_size=TABLE_SIDE, fused=True)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of all networks and pictures; the defaults are the profile's. small, large: sides of LR images [px]."""

    denoiser: DenoiserConfig = DENOISER
    stock: StockSizes = field(default_factory=StockSizes)
    fusion: JointFusionConfig = field(default_factory=JointFusionConfig)
    coarse: RRDBNetConfig = field(default_factory=RRDBNetConfig)
    process_side: int = PROCESS_SIDE
    side: int = SIDE  # latent cells
    small: int = 128
    large: int = 512
    vae_sides: tuple[int, ...] = (64, 128)  # latent cells


TINY = Size(
    denoiser=replace(
        DENOISER,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        dual_attention_layers=(0,),
    ),
    stock=StockSizes(
        vae_channels=(8, 8, 8, 8), norm_groups=4, clip_l=(16, 2, 2), clip_big_g=(16, 2, 2), t5=(32, 2, 2, 32)
    ),
    fusion=JointFusionConfig(fusion=FusionConfig(width=16, num_heads=2, map_channels=4, dino_channels=8)),
    coarse=RRDBNetConfig(num_feat=8, num_block=1, num_grow_ch=4),
    process_side=64,
    side=8,
    small=16,
    large=144,
    vae_sides=(8, 16),
)


@dataclass(frozen=True)
class Setting:
    """On a CPU the sizes are tiny: a dry run, whose figures mean nothing."""

    device: torch.device
    size: Size

    @property
    def is_real(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The profile's precision there."""
        return torch.bfloat16 if self.is_real else torch.float32

    def computed_weights(self) -> dict[str, int]:
        """Bytes of the profile's networks by name: as evaluation.memory computes them, without the extractors."""
        if self.is_real:
            from evaluation.memory import quality_parts  # with diffusers, which not every section needs

            return {part.name: part.num_bytes for part in quality_parts(fused=True) if part.name != "extractors"}
        size, width = self.size, self.dtype.itemsize
        builds: dict[str, Callable[[], nn.Module]] = {
            "DiT4SR": lambda: bare_denoiser(size.denoiser),
            "VAE": lambda: stock_vae(size.stock),
            "CLIP-L": lambda: stock_clip(*size.stock.clip_l),
            "CLIP-bigG": lambda: stock_clip(*size.stock.clip_big_g),
            "T5-XXL": lambda: stock_t5(*size.stock.t5),
            "Real-ESRGAN": lambda: RRDBNet(size.coarse),
            "fusion": lambda: JointFusion(size.fusion, DiffusionTransformer(size.denoiser)),
        }
        with torch.device("meta"):
            return {name: width * sum(p.numel() for p in build().parameters()) for name, build in builds.items()}


def bare_denoiser(config: DenoiserConfig) -> DiffusionTransformer:
    """Without dead weights, on torch's default device; not yet merged."""
    network = DiffusionTransformer(config)
    network.drop_dead_weights()
    return network


def allocated(device: torch.device) -> float:
    """Bytes of tensors on the GPU; NaN elsewhere."""
    return float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else float("nan")


@dataclass
class Peak:
    """Bytes that were allocated at most beyond what was before; NaN on a CPU."""

    num_bytes: float = float("nan")


@contextmanager
def watch_peak(device: torch.device) -> Iterator[Peak]:
    peak, before = Peak(), allocated(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    synchronise(device)
    if device.type == "cuda":
        peak.num_bytes = torch.cuda.max_memory_allocated(device) - before
