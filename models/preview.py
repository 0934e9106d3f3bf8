"""The preview: the coarse image of all regions so far in one small picture, interpolation where it is missing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.resize import resize

MAX_PREVIEW_SIDE = 1024


@dataclass(frozen=True)
class Preview:
    """image: (h, w, 3) in [0, 1], at most `MAX_PREVIEW_SIDE` px a side, valid until the callback returns.

    fraction: in (0, 1], of the regions that are in it.
    """

    image: NDArray[np.float32]
    fraction: float


OnPreview = Callable[[Preview], None]  # may raise to cancel


class PreviewCanvas:
    """Takes the coarse images of the regions as they come and tells what there is.

    lr_image: (1, 3, H, W) without padding. size: (width, height) of the answer in pixels. Its memory is that of the
    small picture, whatever the size of the answer.
    """

    def __init__(self, lr_image: Tensor, size: tuple[int, int], num_regions: int, on_preview: OnPreview):
        shrink = min(1.0, MAX_PREVIEW_SIDE / max(size))
        height, width = (max(1, round(side * shrink)) for side in reversed(size))
        self.lr_size = lr_image.shape[-2:]
        if num_regions == 1:  # which will fill all of it
            self.canvas = torch.zeros(3, height, width)
        else:
            self.canvas = resize(lr_image, (height, width)).clamp(0, 1)[0].cpu()
        self.is_grey = bool((lr_image[:, :1] == lr_image).all())
        self.num_regions, self.num_added, self.on_preview = num_regions, 0, on_preview

    def add(self, top: int, left: int, coarse_sr: Tensor, scale: int) -> None:
        """Takes the coarse image (1, 3, h, w) of the region at that LR pixel, `scale` times its size, and tells."""
        if self.is_grey:
            coarse_sr = coarse_sr.mean(1, keepdim=True)
        # Regions overhang the border where the image was padded, so places are found first and cut off after.
        rows = self.place(top, coarse_sr.shape[-2] // scale, axis=0)
        columns = self.place(left, coarse_sr.shape[-1] // scale, axis=1)
        small = resize(coarse_sr, (rows[1] - rows[0], columns[1] - columns[0])).clamp(0, 1)[0].cpu()
        part = self.canvas[:, rows[0] : rows[1], columns[0] : columns[1]]
        part.copy_(small[:, : part.shape[1], : part.shape[2]].expand_as(part))
        self.num_added += 1
        self.on_preview(Preview(self.canvas.permute(1, 2, 0).numpy(), self.num_added / self.num_regions))

    def place(self, start: int, length: int, axis: int) -> tuple[int, int]:
        """First and last + 1 pixel of the canvas under `length` LR pixels from `start`; one pixel at least."""
        ratio = self.canvas.shape[1 + axis] / self.lr_size[axis]
        begin = min(round(start * ratio), self.canvas.shape[1 + axis] - 1)
        return begin, max(begin + 1, round((start + length) * ratio))
