"""What the published processors do to an image: to 8 bit, resized as Pillow does, normalised. No torchvision.

The processors of transformers resize 8-bit images; the rounding is part of what the networks were trained on.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MODES = {int(number): mode for mode, number in _FILTERS.items()}  # as preprocessor_config.json has them


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """One processor's settings.

    size: (height, width) in pixels; shortest_edge instead keeps the aspect and scales the shorter side to it, or to
    less where the longer would pass longest_edge.  divisor: both sides are rounded up to multiples of it (Mask2Former).
    is_aspect_kept, multiple: with size, the aspect is kept so that as little as possible is scaled, and both sides
    become multiples (Depth Anything).  crop: side of the square cut from the middle afterwards.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    divisor: int = 1
    mode: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    is_aspect_kept: bool = False
    multiple: int = 1
    crop: int | None = None

    @classmethod
    def read(cls, folder: Path, default: "Preprocessing") -> "Preprocessing":
        """The settings of folder/preprocessor_config.json; what it does not say is the default's."""
        path = folder / "preprocessor_config.json"
        told = json.loads(path.read_text()) if path.is_file() else {}
        found = replace(
            default,
            mean=tuple(told.get("image_mean", default.mean)),
            std=tuple(told.get("image_std", default.std)),
            mode=_MODES.get(told.get("resample", 0), default.mode),
            is_aspect_kept=told.get("keep_aspect_ratio", default.is_aspect_kept),
            multiple=told.get("ensure_multiple_of", default.multiple),
            divisor=told.get("size_divisor", default.divisor) or 1,
        )
        size, crop = told.get("size"), told.get("crop_size")
        if isinstance(size, int):
            size = {"height": size, "width": size}
        if size and "height" in size:
            found = replace(found, size=(size["height"], size["width"]), shortest_edge=None)
        elif size:
            found = replace(
                found, size=None, shortest_edge=size["shortest_edge"], longest_edge=size.get("longest_edge")
            )
        if crop and found.crop:
            found = replace(found, crop=crop if isinstance(crop, int) else crop["height"])
        return found

    def __call__(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) in [0, 1] -> (B, 3, h, w) float32, normalised, on the device of the image."""
        size = self.output_size(image.shape[-2], image.shape[-1])
        resized = resize_bytes(image, size, self.mode)
        if self.crop:
            top, left = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
            resized = resized[..., top : top + self.crop, left : left + self.crop]
        return normalise(resized, self.mean, self.std)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing and before cropping."""
        if self.shortest_edge:
            short, long = sorted((height, width))
            scaled: float = self.shortest_edge
            if self.longest_edge and scaled * long / short > self.longest_edge:
                scaled = self.longest_edge * short / long
            shorter, longer = round(scaled), int(scaled * long / short)
            size = (longer, shorter) if height > width else (shorter, longer)
            return tuple(math.ceil(side / self.divisor) * self.divisor for side in size)
        if self.size is None:
            return height, width
        if not self.is_aspect_kept:
            return tuple(math.ceil(self._to_multiple(side) / self.divisor) * self.divisor for side in self.size)
        scale = min(
            (side / old for side, old in zip(self.size, (height, width), strict=True)), key=lambda s: abs(1 - s)
        )
        return self._to_multiple(scale * height), self._to_multiple(scale * width)

    def _to_multiple(self, side: float) -> int:
        return max(round(side / self.multiple), 1) * self.multiple if self.multiple > 1 else math.floor(side)


def resize_bytes(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """image (B, 3, H, W) in [0, 1] -> (B, 3, *size) in [0, 1], rounded to 8 bit and resized by Pillow itself.

    torch's antialiased filters differ from Pillow's fixed-point ones by a level at up to 3 % of the pixels.
    """
    levels = image.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    if tuple(levels.shape[-2:]) != size:
        pictures = [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]
        resized = [np.asarray(picture.resize(size[::-1], _FILTERS[mode])) for picture in pictures]
        levels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(image.device)
    return levels.float() / 255


def normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) minus mean, over std, channel by channel."""
    return (image - image.new_tensor(mean)[:, None, None]) / image.new_tensor(std)[:, None, None]
