"""The published one-pass super-resolvers (Real-ESRGAN, BSRGAN) as they are run by their authors: baselines to beat."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoint import read_foreign
from models.routing.realesrgan import (
    UNSHUFFLE,
    RRDBNet,
    SRVGGNetCompact,
    build_from_state,
    load_realesrgan,
    select_state,
)
from models.tiling import run_padded_tiles

# name -> where its file lies under the models folder
PUBLISHED = {
    "realesrgan": "xinntao/Real-ESRGAN/RealESRGAN_x4plus.pth",
    "realesrgan-x2": "xinntao/Real-ESRGAN/RealESRGAN_x2plus.pth",
    "realesrgan-general": "xinntao/Real-ESRGAN/realesr-general-x4v3.pth",
    "bsrgan": "cszn/BSRGAN/BSRGAN.pth",
}
STRONG, WEAK = "realesr-general-x4v3", "realesr-general-wdn-x4v3"  # the one removes noise, the other keeps it


@dataclass(frozen=True)
class SuperResolver:
    """LR image (1, 3, H, W) in [0, 1] -> SR image (1, 3, scale H, scale W) in [0, 1], tiled as RealESRGANer does it.

    Tiling is Real-ESRGAN's: tiles side by side, each read with `tile_pad` pixels of context. Any H and W.
    """

    network: RRDBNet | SRVGGNetCompact
    tile: int = 0  # side of a tile [LR px]; 0: the whole image at once, the authors' default
    tile_pad: int = 10  # context around each tile [LR px]
    pre_pad: int = 0  # pixels mirrored at the right and lower border and cut off again

    def __post_init__(self) -> None:
        if min(self.tile, self.tile_pad, self.pre_pad) < 0:
            raise ValueError(f"tile {self.tile}, tile_pad {self.tile_pad}, pre_pad {self.pre_pad} must not be negative")
        # x2 reads blocks of 2 x 2 pixels: a tile that begins inside a block would be read on another grid
        block = UNSHUFFLE[self.scale] if isinstance(self.network, RRDBNet) else 1
        if self.tile and (self.tile % block or self.tile_pad % block):
            raise ValueError(f"tile {self.tile} and tile_pad {self.tile_pad} must be multiples of {block}")

    @property
    def scale(self) -> int:
        config = self.network.config
        return config.upscale if hasattr(config, "upscale") else config.scale

    @torch.inference_mode()
    def __call__(self, lr_image: Tensor) -> Tensor:
        height, width = lr_image.shape[-2:]
        weight = next(self.network.parameters())
        # mirroring needs more pixels than it adds; the authors' code fails there, here the edge is repeated
        mode = "reflect" if min(height, width) > self.pre_pad else "replicate"
        padded = F.pad(lr_image.to(weight), (0, self.pre_pad, 0, self.pre_pad), mode=mode)
        sr_image = run_padded_tiles(self.network, padded, self.tile, self.tile_pad, self.scale)
        return sr_image[..., : height * self.scale, : width * self.scale].clamp(0, 1).to(lr_image)


def published_path(root: Path, name: str) -> Path:
    """Where the file of a published super-resolver lies. Raises ValueError on a name that is not known."""
    if name not in PUBLISHED:
        raise ValueError(f"unknown super-resolver {name!r}; known: {', '.join(PUBLISHED)}")
    return root / PUBLISHED[name]


def load_super_resolver(
    path: Path,
    device: str | torch.device = "cpu",
    *,
    denoise_strength: float | None = None,
    tile: int = 0,
    tile_pad: int = 10,
    pre_pad: int = 0,
) -> SuperResolver:
    """Loads RealESRGAN_x4plus, x2plus, realesr-general-x4v3, animevideov3, BSRGAN or any file of these two networks.

    denoise_strength: in [0, 1], only for realesr-general-x4v3, whose sister file realesr-general-wdn-x4v3 must lie
    beside it: the weights are strength * x4v3 + (1 - strength) * wdn. None takes the file as it is, which is 1; the
    authors' script takes 0.5 unless told.
    Raises ValueError, with what to do, on a missing, broken or foreign file and on values out of range.
    """
    if denoise_strength is None:
        return SuperResolver(load_realesrgan(path, device), tile, tile_pad, pre_pad)
    if not 0 <= denoise_strength <= 1:
        raise ValueError(f"denoise_strength {denoise_strength} is outside 0..1")
    if path.stem != STRONG:
        raise ValueError(f"{path.name} has no denoise_strength: only {STRONG} has; leave it out")
    sister = path.with_name(WEAK + path.suffix)
    strong, weak = (select_state(read_foreign(file)) for file in (path, sister))
    network = build_from_state(interpolate_states(strong, weak, denoise_strength))
    return SuperResolver(network.requires_grad_(False).eval().to(device), tile, tile_pad, pre_pad)


def interpolate_states(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """share * first + (1 - share) * second, weight by weight. Raises ValueError when they are of two networks."""
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError("the two files hold different networks, so their weights cannot be mixed")
    return {name: share * value + (1 - share) * second[name] for name, value in first.items()}
