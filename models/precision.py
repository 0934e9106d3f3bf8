"""In which precision the transformer computes: bfloat16 where the machine has it and it pays, float32 elsewhere.

Only matrix products and convolutions of `REDUCED` parts are reduced. Of the coarse network that is the residual alone,
which is small beside the upscaled image that it corrects. Codec, uncertainty and colours decide the last digits of the
picture and stay in float32; so does perception with its small depthwise filters.
"""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.denoising.transformer import DiffusionTransformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# parts of models.network.M3ESR; the temperatures are not among them: 8 bits could make one 0
REDUCED = ("coarse", "detail", "router", "fusion.map_encoder", "fusion.dino_projection", "fusion.experts", "denoiser")
MAX_DIFFERENCE = 0.05  # of the probe's velocity, relative: bfloat16 keeps 8 bits, a broken kernel keeps none
MIN_SPEED_UP = 1.1
PROBE_ROUNDS, PROBE_TILES = 3, 4


def choose_dtype(asked: str, device: torch.device, pays: Callable[[], bool]) -> torch.dtype:
    """The dtype for `asked`: auto, bf16, fp16 or fp32. pays: probes bfloat16, asked only where the CPU has it.

    "auto" takes bfloat16 on a CPU with instructions for it on which the probe runs faster and right; float32 on all
    others and on GPUs. Raises ValueError on a name that is not known and on fp16 without a GPU.
    """
    if asked == "auto":
        is_bf16 = device.type == "cpu" and cpu_has_bf16() and pays()
        return torch.bfloat16 if is_bf16 else torch.float32
    if asked not in DTYPES:
        raise ValueError(f"dtype {asked!r} is unknown; use auto, {', '.join(DTYPES)}")
    if asked == "fp16" and device.type == "cpu":
        raise ValueError("fp16 needs a GPU; use auto, bf16 or fp32 on a CPU")
    return DTYPES[asked]


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself (AVX512-BF16 or AMX); emulated it would be slower than float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.5 cannot say: then it has none
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def reduce_weights(part: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of linear layers and convolutions in `dtype`, in place; norms and tables stay as they are."""
    for module in part.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(dtype)


def bf16_pays(denoiser: DiffusionTransformer, tile: int, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Runs the denoiser on a few random tiles (`tile` latent cells a side) both ways: equal enough, and faster?

    The best of alternating rounds counts, so that other work on the machine disturbs both alike. Left as it was.
    """
    reduced = copy.deepcopy(denoiser)
    reduce_weights(reduced, torch.bfloat16)
    config, generator = denoiser.config, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(PROBE_TILES, *shape, generator=generator)

    latents = [random(config.in_channels, tile, tile) for _ in range(2)]
    text, pooled = random(8, config.joint_attention_dim), random(config.pooled_projection_dim)
    inputs = (*latents, text, pooled, torch.full((PROBE_TILES,), 1000.0))
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    velocity = {}
    with torch.inference_mode():
        for _ in range(1 + PROBE_ROUNDS):
            for dtype, network in ((torch.float32, denoiser), (torch.bfloat16, reduced)):
                started = clock()
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    velocity[dtype] = network(*inputs).float()
                seconds[dtype].append(clock() - started)
    right, found = velocity[torch.float32], velocity[torch.bfloat16]
    if not (found - right).norm() <= MAX_DIFFERENCE * right.norm():  # written so that NaN fails
        return False
    best = {dtype: min(measured[1:]) for dtype, measured in seconds.items()}  # the first round allocates
    return best[torch.float32] > MIN_SPEED_UP * best[torch.bfloat16]
