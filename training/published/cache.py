"""What the frozen networks make of pairs and captions, computed once and kept on disk in half precision.

Dimension key: B batch  C latent channels  h w latent grid  L text tokens  J text features  M modalities
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.modalities.published.config import MODALITIES

OF_LR = ("lr_latent", "small", "uncertainty")  # what every fusion reads of a degraded version
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class FusionBatch:
    """All that a training step reads, float32."""

    clean: Tensor  # (B, C, h, w) latent of the HR image, h and w even
    lr_latent: Tensor  # (B, C, h, w)
    small: Tensor  # (B, 3, 2h, 2w) in [0, 1], the router's view of the LR image
    uncertainty: Tensor  # (B, 1, h/2, w/2)
    modalities: dict[str, Tensor]  # (B, ., h/2, w/2) each
    conditions: dict[str, Tensor]  # (B, ...) each: what else the backbone is told, "text_embeddings" (B, L, J) among it

    def to(self, device: torch.device) -> "FusionBatch":
        def move(value: Any) -> Any:
            return {name: v.to(device) for name, v in value.items()} if isinstance(value, dict) else value.to(device)

        return FusionBatch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class CacheOrigin:
    """What the files of a cache were made from. Others are refused: they would be trained on without a word."""

    pairs: str  # SHA-256 of index.json
    weights: str  # whose text features it holds
    modalities: tuple[str, ...]
    has_t5: bool  # beside `quality`


class FeatureCache:
    """A folder with one file per photograph, per degraded version and per caption; a file is whole or not there."""

    def __init__(self, folder: Path):
        self.folder = folder

    def open(self, origin: CacheOrigin) -> None:
        """Writes what the cache is of, or checks it. Raises ValueError when it is of something else."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, told = self.folder / "origin.json", json.loads(json.dumps(asdict(origin)))
        if not path.exists():
            replace_text(path, json.dumps(told, indent=1))
        found = json.loads(path.read_text())
        if differing := [name for name in told if found.get(name) != told[name]]:
            raise ValueError(f"{self.folder} holds features of other {', '.join(differing)}: use another --features")

    def hr_path(self, photograph: int) -> Path:
        return self.folder / f"hr_{photograph:06d}.safetensors"

    def lr_path(self, photograph: int, draw: int) -> Path:
        return self.folder / f"lr_{draw:03d}_{photograph:06d}.safetensors"

    def text_path(self, caption: str) -> Path:
        return self.folder / f"text_{hashlib.sha256(caption.encode()).hexdigest()[:32]}.safetensors"

    def write(self, path: Path, tensors: Tensors) -> None:
        """Floats in half precision: latents are a few units large, and 11 bits of them are far below the noise."""
        temporary = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: value.detach().half().contiguous().cpu() for name, value in tensors.items()}, temporary)
        temporary.replace(path)

    def read(self, path: Path) -> Tensors:
        """Raises ValueError when the file is missing or broken."""
        try:
            return {name: value.float() for name, value in load_file(path).items()}
        except Exception as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it, and it is made again") from error

    def batch(self, samples: list[tuple[int, int, str]]) -> FusionBatch:
        """(photograph, draw, caption) of each sample -> what a step reads."""
        hr = [self.read(self.hr_path(photograph)) for photograph, _, _ in samples]
        lr = [self.read(self.lr_path(photograph, draw)) for photograph, draw, _ in samples]
        text = [self.read(self.text_path(caption)) for _, _, caption in samples]
        told = [name for name in lr[0] if name not in (*MODALITIES, *OF_LR)]
        return FusionBatch(
            clean=stack(hr, "clean"),
            lr_latent=stack(lr, "lr_latent"),
            small=stack(lr, "small"),
            uncertainty=stack(lr, "uncertainty"),
            modalities={name: stack(lr, name) for name in lr[0] if name in MODALITIES},
            conditions={name: stack(text, name) for name in text[0]} | {name: stack(lr, name) for name in told},
        )


def stack(samples: list[Tensors], name: str) -> Tensor:
    return torch.stack([sample[name] for sample in samples])


def replace_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(text)
    temporary.replace(path)
