"""Times our transformer, which also reads an LR image, beside diffusers' stock SD3 transformer; interleaved.

    python -m evaluation.speed                        4 layers of width 512 in float32 on the CPU
    python -m evaluation.speed --full --device cuda   SD3.5 medium's size, with and without the fused group

Neighbours on the same cores or GPU can triple a time: what counts is the ratio of the medians, from runs in turn.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from models.denoising.config import DenoiserConfig
from models.denoising.linear import has_onednn
from models.denoising.stock import stock_transformer
from models.denoising.transformer import DiffusionTransformer

SMALL = DenoiserConfig(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=4,
    attention_head_dim=64,
    num_attention_heads=8,
    joint_attention_dim=4096,
    pooled_projection_dim=2048,
    pos_embed_max_size=384,
    dual_attention_layers=(0, 1),
)
FULL = replace(SMALL, num_layers=24, num_attention_heads=24, dual_attention_layers=tuple(range(13)))
SIDE, TEXT_TOKENS = 64, 333  # latent cells; 77 of CLIP and 256 of T5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """Seconds of one pass: median and least over the rounds; tflop: of one pass, by torch's counter."""

    name: str
    median: float
    least: float
    tflop: float


def flop_counter() -> FlopCounterMode:
    """torch's counter, with what it has no formula for: attention on a CPU, and oneDNN's products."""
    formulas: dict[Any, Callable[..., int]] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    }
    if has_onednn(torch.float32):
        formulas[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]
    return FlopCounterMode(display=False, custom_mapping=formulas)


def make_inputs(
    config: DenoiserConfig, batch: int, device: torch.device, dtype: torch.dtype, side: int | None = None
) -> dict[str, torch.Tensor]:
    """Random arguments of a pass, by name; side: of the latents [cells], `SIDE` if not given."""
    generator = torch.Generator().manual_seed(0)
    side = side or SIDE

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).to(device, dtype)

    return {
        "noisy": draw(config.in_channels, side, side),
        "lr": draw(config.in_channels, side, side),
        "text": draw(TEXT_TOKENS, config.joint_attention_dim),
        "pooled": draw(config.pooled_projection_dim),
        "timestep": torch.full((batch,), 500.0, device=device),
    }


def build_ours(config: DenoiserConfig, device: torch.device, dtype: torch.dtype, compile_it: bool) -> nn.Module:
    """Random weights, ready for inference as a loaded profile is."""
    with device:
        network = DiffusionTransformer(config)
    network.drop_dead_weights()
    network = network.to(device, dtype).eval().requires_grad_(False)
    network.merge_projections()
    if compile_it:
        network.compile()
    elif device.type == "cpu":
        network.pack_for_cpu()
    return network


def runs(
    arguments: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    config: DenoiserConfig | None = None,
    side: int | None = None,
) -> dict[str, Callable[[], object]]:
    """What is timed, by name; `stock` first. config, side [cells]: other sizes than the command's own."""
    config = config or (FULL if arguments.full else SMALL)
    inputs = make_inputs(config, arguments.batch, device, dtype, side)
    noisy, lr, text, pooled, timestep = inputs.values()
    with device:
        stock = stock_transformer(config).to(device, dtype).eval().requires_grad_(False)
    if arguments.compile:
        stock.compile()
    found: dict[str, Callable[[], object]] = {"stock": lambda: stock(noisy, text, pooled, timestep, return_dict=False)}
    for variant in ("r1", "orig"):
        network = build_ours(replace(config, variant=variant), device, dtype, arguments.compile)
        found[f"ours {variant}"] = lambda network=network: network(noisy, lr, text, pooled, timestep)
        if arguments.full:
            break  # one network of this size is enough
    if arguments.full or arguments.fused:
        fused = build_ours(replace(config, fused=True), device, dtype, arguments.compile)
        tokens = fused.embed_latent(lr)
        found["ours r1, fused"] = lambda: fused(noisy, lr, text, pooled, timestep, tokens)
    return found


@torch.inference_mode()
def measure(passes: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> list[Timing]:
    """Runs all passes in turn, `rounds` times, after one that is not counted."""
    tflop = {}
    for name, run in passes.items():
        with flop_counter() as counter:
            run()
        tflop[name] = counter.get_total_flops() / 1e12
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            synchronise(device)
            started = time.perf_counter()
            run()
            synchronise(device)
            seconds[name].append(time.perf_counter() - started)
    return [Timing(name, statistics.median(s), min(s), tflop[name]) for name, s in seconds.items()]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(timings: Sequence[Timing], peak_tflops: float | None) -> str:
    """A line for each; ratios are to the first."""
    lines = [
        f"{'':16} {'median ms':>10} {'least ms':>10} {'of stock':>9} {'per second':>11} {'TFLOP':>8} {'of peak':>8}"
    ]
    for timing in timings:
        share = f"{timing.tflop / timing.median / peak_tflops:8.1%}" if peak_tflops else f"{'-':>8}"
        lines.append(
            f"{timing.name:16} {1000 * timing.median:10.1f} {1000 * timing.least:10.1f} "
            f"{timing.median / timings[0].median:9.3f} {1 / timing.median:11.2f} {timing.tflop:8.3f} {share}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the size of SD3.5 medium; a guidance batch of two")
    parser.add_argument("--fused", action="store_true", help="time the fused group too (with --full always)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--batch", type=int, help="1, with --full 2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")
    parser.add_argument("--peak-tflops", type=float, help="of the device in this precision, as its maker tells it")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    parsed = parser.parse_args(arguments)
    parsed.batch = parsed.batch or (2 if parsed.full else 1)
    parsed.dtype = parsed.dtype or ("fp32" if parsed.device == "cpu" else "bf16")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    with torch.inference_mode():
        passes = runs(chosen, device, DTYPES[chosen.dtype])
    timings = measure(passes, chosen.rounds, device)
    print(json.dumps([asdict(t) for t in timings]) if chosen.json else report(timings, chosen.peak_tflops))
    return 0


if __name__ == "__main__":
    sys.exit(main())
