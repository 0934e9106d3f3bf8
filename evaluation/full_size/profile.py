"""Whole pictures by the profile's own loop over random weights: seconds, memory of each stage, weights of each network.

All of `quality` but its tokenizers and extractors: token ids and the features of the modalities are random, too.
"""

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.full_size.numerics import randomise
from evaluation.full_size.record import Deadline, OutOfTimeError, Row
from evaluation.full_size.setting import Setting, allocated, bare_denoiser
from evaluation.full_size.vae import random_vae
from evaluation.memory import working_bytes
from evaluation.speed import synchronise
from models.backbones.coarse import CoarseEstimator
from models.backbones.guidance import GRID
from models.backbones.memory import GIB, PUBLISHED_SIDES, Placement
from models.backbones.published import Extras, Fusion
from models.backbones.quality import QualityUpscaler, Schedule
from models.backbones.sizes import VAE_SCALE
from models.backbones.stock import RandomTokens, stock_clip, stock_t5
from models.backbones.text import PromptEncoder
from models.fusion.joint import JointFusion, JointFusionConfig
from models.requests import ProgressEvent, UpscaleOptions, UpscaleResult
from models.routing.realesrgan import RRDBNet

NUM_STEPS, NUM_LARGE, NUM_WARM = 40, 3, 2
ALONE = {"text": 1.0}  # no visual modality: DiT4SR


@dataclass(frozen=True)
class RandomGuidance:
    """In the extractors' place: features of the right shape, drawn anew."""

    config: JointFusionConfig
    networks: tuple[nn.Module, ...] = ()

    def read(self, image: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """(1, 3, H, W) -> (1, ., H/16, W/16) for each of `names`, float32."""
        fusion, grid = self.config.fusion, (image.shape[-2] // GRID, image.shape[-1] // GRID)
        channels = {name: fusion.dino_channels if name == "dino" else fusion.map_channels for name in names}
        return {name: torch.randn(1, count, *grid, device=image.device) for name, count in channels.items()}


@dataclass
class StageMeter:
    """Told of progress; seconds and peak [bytes] of each stage, with the GPU's work waited for. Stops in time."""

    device: torch.device
    deadline: Deadline
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    num_steps: int = 0
    stage: str = ""
    started: float = 0.0

    def __call__(self, event: ProgressEvent) -> None:
        if event.stage != self.stage:
            self.end_stage()
            self.stage, self.started = event.stage, time.perf_counter()
        if event.stage == "denoising":
            self.num_steps = event.step
            self.deadline.check()

    def end_stage(self) -> None:
        synchronise(self.device)
        if self.stage:
            self.seconds[self.stage] = time.perf_counter() - self.started
            self.peaks[self.stage] = peak_bytes(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def told(self) -> str:
        parts = (
            f"{name} {seconds:.2f} s" + (f" {self.peaks[name] / GIB:.1f} GiB" if self.peaks[name] > 0 else "")
            for name, seconds in self.seconds.items()
        )
        return ", ".join(parts)


def peak_bytes(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else float("nan")


def frozen(build: Callable[[], nn.Module], setting: Setting, dtype: torch.dtype) -> Any:
    with setting.device:
        network = build()
    return network.to(dtype).eval().requires_grad_(False)


def merged_denoiser(setting: Setting) -> Any:
    """As the profile runs it, with the weights of `randomise`."""
    network = frozen(lambda: bare_denoiser(setting.size.denoiser), setting, torch.float32)
    randomise(network)
    network = network.to(setting.dtype)
    network.merge_projections()
    return network


def makers(setting: Setting, networks: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """By the names of `evaluation.memory`; a later one may read the networks before it."""
    size, dtype = setting.size, setting.dtype
    return {
        "DiT4SR": lambda: merged_denoiser(setting),
        "VAE": lambda: random_vae(setting),
        "CLIP-L": lambda: frozen(lambda: stock_clip(*size.stock.clip_l), setting, dtype),
        "CLIP-bigG": lambda: frozen(lambda: stock_clip(*size.stock.clip_big_g), setting, dtype),
        "T5-XXL": lambda: frozen(lambda: stock_t5(*size.stock.t5), setting, dtype),
        "Real-ESRGAN": lambda: frozen(lambda: RRDBNet(size.coarse), setting, torch.float32),
        "fusion": lambda: frozen(lambda: JointFusion(size.fusion, networks["DiT4SR"]), setting, torch.float32),
    }


def weight_bytes(network: Any, device: torch.device, before: float) -> float:
    """What the GPU holds more than `before`; on a CPU the sum of the parameters. A tiled VAE's are its network's."""
    if device.type == "cuda":
        return allocated(device) - before
    module = network if isinstance(network, nn.Module) else network.network
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def assemble(networks: dict[str, Any], setting: Setting) -> QualityUpscaler:
    """The profile from its parts, everything on the device."""
    placement, tokens = Placement("none", setting.device), RandomTokens()
    clips = [(tokens, networks["CLIP-L"]), (tokens, networks["CLIP-bigG"])]
    text_features = setting.size.denoiser.joint_attention_dim
    fusion: Any = Fusion(networks["fusion"], RandomGuidance(setting.size.fusion))  # type: ignore[arg-type]
    upscaler = QualityUpscaler(
        networks["DiT4SR"],
        networks["VAE"],
        PromptEncoder(clips, (tokens, networks["T5-XXL"]), text_features, placement),
        Schedule(),
        placement,
        extras=Extras(fusion=fusion, coarse=CoarseEstimator(networks["Real-ESRGAN"], placement)),
    )
    upscaler.sampling = replace(upscaler.sampling, process_side=setting.size.process_side)
    return upscaler


def rows(setting: Setting, deadline: Deadline) -> Generator[Row, None, None]:
    """Weights of each network, then pictures: small ones of all steps, a large one of few."""
    size, networks = setting.size, {}
    computed = setting.computed_weights()
    for name, make in makers(setting, networks).items():
        before = allocated(setting.device)
        networks[name] = make()
        found = weight_bytes(networks[name], setting.device, before)
        yield Row(f"weights: {name}", "GiB", found / GIB, computed[name] / GIB)
    upscaler, weights = assemble(networks, setting), sum(computed.values())
    upscale(upscaler, size.small, UpscaleOptions(num_steps=NUM_WARM), StageMeter(setting.device, deadline))
    for words, options in {
        "fused": UpscaleOptions(num_steps=NUM_STEPS),
        "alone": UpscaleOptions(num_steps=NUM_STEPS, modalities=ALONE),
    }.items():
        yield from picture(upscaler, size.small, options, words, weights, StageMeter(setting.device, deadline))
    options = UpscaleOptions(num_steps=NUM_LARGE)
    yield from picture(upscaler, size.large, options, "fused", weights, StageMeter(setting.device, deadline))


def upscale(upscaler: QualityUpscaler, side: int, options: UpscaleOptions, meter: StageMeter) -> UpscaleResult | None:
    """A random square of `side` px; None when time ran out while denoising."""
    image = np.random.default_rng(0).random((side, side, 3), np.float32)
    try:
        result = upscaler.upscale(image, options, meter)
    except OutOfTimeError:
        result = None
    meter.end_stage()
    return result


def picture(
    upscaler: QualityUpscaler, side: int, options: UpscaleOptions, words: str, weights: int, meter: StageMeter
) -> Generator[Row, None, None]:
    """Seconds of `NUM_STEPS` steps, from fewer if there were fewer, and the highest memory of the run.

    weights: computed bytes of all networks, which the computed peak begins with.
    """
    name = f"{side} -> {round(4 * side)} px, {words}"
    result = upscale(upscaler, side, options, meter)
    if meter.num_steps == 0:
        raise OutOfTimeError(f"no step of {name} was done")
    step = meter.seconds["denoising"] / meter.num_steps
    others = sum(meter.seconds.values()) - meter.seconds["denoising"]
    is_whole = meter.num_steps == NUM_STEPS and result is not None
    told = "measured whole" if is_whole else f"EXTRAPOLATED from {meter.num_steps} steps of {NUM_STEPS}"
    if result is not None:
        told += ", finite" if np.isfinite(result.sr_image).all() else ", NOT FINITE"
    yield Row(f"{name}: {NUM_STEPS} steps", "s", others + NUM_STEPS * step, note=told)
    tiles = f"; {'; '.join(result.notes)}" if result is not None and result.notes else ""
    yield Row(f"{name}: one step", "s", step, note=meter.told() + tiles)
    cells = 4 * side // VAE_SCALE
    computed = weights + working_bytes({stage: min(tile, cells) for stage, tile in PUBLISHED_SIDES.items()})
    is_real = meter.device.type == "cuda"
    peak = max(meter.peaks.values()) / GIB
    yield Row(f"memory: {name}", "GiB", peak, computed / GIB if is_real else None, "weights and all, no extractors")
