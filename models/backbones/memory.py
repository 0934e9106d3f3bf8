"""Holding large networks in little memory: where each part lies, and tiles that fit what is free.

Nothing here knows what the networks compute; results differ between plans only by rounding, and between tile sizes as
tiles do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

Offload = Literal["none", "model", "sequential"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GIB = 2**30
T = TypeVar("T")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, bfloat16 on a GPU that has it, else float16. Raises ValueError on another word."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r} is unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[precision]


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU; None elsewhere: a CPU swaps rather than refuses, so nothing is derived from it."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


class Placement:
    """Brings networks to the device when they are used.

    none: all parts lie on the device. model: a part lies there while it is in use. sequential: every layer is fetched
    when it runs, which takes least memory and most time.
    """

    def __init__(self, offload: str, device: torch.device):
        if offload not in OFFLOADS:
            raise ValueError(f"offload {offload!r} is unknown; use {', '.join(OFFLOADS)}")
        self.offload, self.device = offload, device

    @property
    def home(self) -> torch.device:
        """Where a part lies when it is not in use; loaders read weights to there."""
        return self.device if self.offload == "none" else torch.device("cpu")

    def add(self, network: nn.Module) -> None:
        """Prepares a loaded network for its plan; once for each."""
        if self.offload == "sequential":
            from accelerate import cpu_offload

            cpu_offload(network, execution_device=self.device)
        else:
            network.to(self.home)

    @contextmanager
    def use(self, *networks: nn.Module) -> Iterator[None]:
        """While entered, the networks can be run with inputs on `device`."""
        if self.offload != "model":
            yield
            return
        try:
            for network in networks:
                network.to(self.device)
            yield
        finally:
            for network in networks:
                network.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


@dataclass
class TileSizes:
    """Tile sides of one run, in latent cells; each is halved when memory runs out, never below its least.

    notes: what was done about memory, in sentences for the job's result.
    """

    denoise: int
    encode: int
    decode: int
    notes: list[str] = field(default_factory=list)

    def halve(self, name: str) -> bool:
        """Whether there was something left to halve."""
        side = getattr(self, name)
        half = side // 2 // 2 * 2  # even: whole patches
        if half < LEAST_SIDE[name]:
            return False
        setattr(self, name, half)
        self.notes.append(f"Memory ran out: {WORDS[name]} tiles were halved to {half} latent cells.")
        return True

    def fit(self, name: str, run: Callable[[], T]) -> T:
        """Runs `run` again with half the tile `name` for as long as memory runs out; then the error goes up."""
        while True:
            try:
                return run()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # The traceback holds the tensors that filled the memory; nothing is freed while it lives.
                error.__traceback__ = None
                if not self.halve(name):
                    raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


WORDS = {"denoise": "denoising", "encode": "VAE encoder", "decode": "VAE decoder"}
# Below these a tile sees too little of the picture: the denoiser was trained on 64 cells.
LEAST_SIDE = {"denoise": 32, "encode": 32, "decode": 32}
# Published sides, and what free memory each of the smaller ones takes over from: activations by calculation
# (docs/profiles.md), with a reserve of a half. A batch of two, half precision.
SIDES = ((64, 128, 128), (48, 64, 64), (32, 32, 32))
NEEDED_BYTES = (6 * GIB, 3 * GIB, 0)


def choose_tiles(free: int | None, denoise_limit: int = 64) -> TileSizes:
    """Tile sides for `free` bytes beside the weights; None: as published.

    Fewer denoising cells than published change the picture a little, which is told.
    """
    index = 0 if free is None else next(i for i, needed in enumerate(NEEDED_BYTES) if free >= needed)
    denoise, encode, decode = SIDES[index]
    tiles = TileSizes(min(denoise, denoise_limit), encode, decode)
    if index:
        told = f"{(free or 0) / GIB:.1f} GiB of free GPU memory"
        tiles.notes.append(f"{told}: tiles of {tiles.denoise} latent cells (published: {SIDES[0][0]}).")
    return tiles


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host; the CPU allocator raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error).lower()
