"""Half precision against float32 of the same weights, and a GPU's float32 against a CPU's.

Weights and inputs are random and rounded to bfloat16 first, so that every precision begins with the same numbers: the
error is that of the arithmetic. No weight is left at zero (a gate at zero would hide what lies behind it).
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from evaluation.full_size.record import Deadline, Row
from evaluation.full_size.setting import Setting, bare_denoiser
from evaluation.speed import DTYPES, make_inputs
from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer

SHALLOW = 2  # layers of the network that a CPU runs too
GROUPS = {"fused": "with the fused group", "alone": "without it"}


@torch.no_grad()
def randomise(network: nn.Module, seed: int = 0) -> None:
    """Matrices N(0, 1 / fan in), so that signals keep their size; norms' weights about 1, biases about 0 (0.1)."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in network.named_parameters():
        generator = generators.setdefault(parameter.device, torch.Generator(parameter.device).manual_seed(seed))
        if parameter.ndim > 1:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            parameter.normal_(float(name.endswith("weight")), 0.1, generator=generator)
        parameter.copy_(parameter.bfloat16())


def random_denoiser(config: DenoiserConfig, device: torch.device) -> DiffusionTransformer:
    """float32, not merged."""
    with device:
        network = bare_denoiser(config)
    randomise(network)
    return network.eval().requires_grad_(False)


def in_precision(network: DiffusionTransformer, dtype: torch.dtype) -> DiffusionTransformer:
    """A copy as the profile would run it: projections merged in this precision."""
    copy = deepcopy(network).to(dtype)
    copy.merge_projections()
    return copy


def answers(network: DiffusionTransformer, inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """Velocities (B, C, h, w) in float32, by the keys of `GROUPS`."""
    arguments = {name: value if name == "timestep" else value.to(network.dtype) for name, value in inputs.items()}
    fused = tokens.to(network.dtype)
    return {
        "fused": network(*arguments.values(), fused).float(),
        "alone": network(*arguments.values()).float(),
    }


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference by the norm of `exact`; NaN if anything is not finite."""
    if not found.isfinite().all():
        return float("nan")
    return float((found - exact).double().norm() / exact.double().norm())


def compare(name: str, found: dict[str, Tensor], exact: dict[str, Tensor]) -> Iterator[Row]:
    """A row for each way; a note where a value is not finite."""
    for key, words in GROUPS.items():
        error = relative_error(found[key], exact[key])
        worst = float((found[key] - exact[key]).abs().max() / exact[key].abs().max())
        note = "NOT FINITE" if math.isnan(error) else f"finite; at most {worst:.1e} of the largest value"
        yield Row(f"{name}, {words}", "error", error, note=note)


def rounded_inputs(config: DenoiserConfig, batch: int, setting: Setting) -> dict[str, Tensor]:
    inputs = make_inputs(config, batch, setting.device, torch.bfloat16, setting.size.side)
    return {name: value.float() for name, value in inputs.items()}


def random_tokens(network: DiffusionTransformer, inputs: dict[str, Tensor]) -> Tensor:
    """Fused tokens (B, P, D), rounded to bfloat16."""
    patches = network.embed_latent(inputs["lr"])
    generator = torch.Generator().manual_seed(1)
    return torch.randn(patches.shape, generator=generator).bfloat16().to(patches)


def rows(setting: Setting, deadline: Deadline) -> Iterator[Row]:
    """Relative errors of the velocity of a guidance batch (2) at timestep 500."""
    config, device = setting.size.denoiser, setting.device
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        network, inputs = random_denoiser(config, device), rounded_inputs(config, 2, setting)
        tokens = random_tokens(network, inputs)
        exact = answers(network, inputs, tokens)
        deviation = float(exact["alone"].std())
        told = f"{config.num_layers} layers of width {config.width}; the velocity's deviation {deviation:.2f}"
        yield Row("what the fused group changes", "share", relative_error(exact["fused"], exact["alone"]), note=told)
        for name, dtype in DTYPES.items():
            yield from compare(f"{name} merged", answers(in_precision(network, dtype), inputs, tokens), exact)
            deadline.check()
        del network
        yield from against_the_cpu(setting)


def against_the_cpu(setting: Setting) -> Iterator[Row]:
    """One sample, `SHALLOW` layers at full width: as many as a CPU runs within seconds. On a CPU nothing."""
    if not setting.is_real:
        return
    config = replace(setting.size.denoiser, num_layers=SHALLOW, dual_attention_layers=(0,))
    network, inputs = random_denoiser(config, setting.device), rounded_inputs(config, 1, setting)
    tokens = random_tokens(network, inputs)
    found = answers(in_precision(network, torch.float32), inputs, tokens)
    on_cpu = in_precision(network.cpu(), torch.float32)
    on_cpu.pack_for_cpu()
    exact = answers(on_cpu, {name: value.cpu() for name, value in inputs.items()}, tokens.cpu())
    found = {name: value.cpu() for name, value in found.items()}
    yield from compare(f"fp32 GPU to CPU, {SHALLOW} layers", found, exact)
