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
    """Memory of a GPU that torch can still give out; None elsewhere: a CPU swaps rather than refuses."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


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

    def whole(self) -> "Placement":
        """The same plan for networks that read weights outside of their layers' own calls: never layer by layer."""
        return Placement("model" if self.offload == "sequential" else self.offload, self.device)

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
    """Tile sides of one run, in latent cells: chosen from free memory, halved when it runs out all the same.

    notes: what was done about memory, in sentences for the job's result.
    """

    sides: dict[str, int] = field(default_factory=lambda: dict(PUBLISHED_SIDES))
    notes: list[str] = field(default_factory=list)

    def choose(self, name: str, free: int | None) -> None:
        """Takes the largest side whose need is met by `free` bytes; None (no GPU): as published."""
        if free is None:
            return
        published, side = self.sides[name], self.sides[name]
        while side // 2 >= LEAST_SIDE and RESERVE * needed_bytes(name, side) > free:
            side //= 2
        if side < published:
            self.sides[name] = side
            told = f"{free / GIB:.1f} GiB of GPU memory were free"
            self.notes.append(f"{told}: {WORDS[name]} tiles of {side} latent cells, not {published}.")

    def fit(self, name: str, run: Callable[[int], T]) -> T:
        """Runs `run` with the tile side `name`, again with half of it for as long as memory runs out.

        At the least side the error goes up.
        """
        while True:
            side = self.sides[name]
            try:
                return run(side)
            except Exception as error:
                if not is_out_of_memory(error) or side // 2 < LEAST_SIDE:
                    raise
                # Nothing is freed before this clause ends: the traceback holds the tensors that filled the memory.
            self.sides[name] = side // 2
            self.notes.append(f"Memory ran out: {WORDS[name]} tiles were halved to {side // 2} latent cells.")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


WORDS = {"denoise": "denoising", "encode": "VAE encoder", "decode": "VAE decoder"}
PUBLISHED_SIDES = {"denoise": 64, "encode": 128, "decode": 128}  # the VAE's are ours: DiT4SR never tiles it
LEAST_SIDE = 16  # a smaller tile sees too little of the picture
RESERVE = 1.5  # memory is fragmented, and kernels want scratch space


def needed_bytes(name: str, side: int) -> int:
    """Activations of a tile of `side` latent cells in half precision, computed from the published sizes.

    VAE: feature maps of 256 channels at full size, the widest place of its last level: three on the way in, five on the
    way out, which is within 5 % of what an H200 took for 512 and 1024 px. Denoiser: a batch of two (CFG), three image
    groups and the text, twenty-four values per token and feature alive at once, of which eight are the MLP's; there
    half of that was enough.
    """
    if name == "denoise":
        num_tokens = 3 * (side // 2) ** 2 + 333
        return 2 * num_tokens * 1536 * 24 * 2
    return {"encode": 3, "decode": 5}[name] * 256 * (8 * side) ** 2 * 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host; the CPU allocator raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error).lower()
