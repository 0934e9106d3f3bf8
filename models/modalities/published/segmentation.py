"""Segmentation: Mask2Former (ADE20K), rendered in that data set's colours."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.modalities.published.palette import ADE20K_COLOURS
from models.modalities.published.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(384, 384), mode="bilinear")
MASK_SIDE = 384  # the published post-processing brings every mask to this size first
CHUNK = 16  # classes whose full-size maps exist at a time; all 150 of a 2048 px image would take 2.5 GB


class Segmentation:
    """(B, 3, H, W) in [0, 1] -> colours (B, 3, H, W) in [0, 1], or class ids (B, H, W)."""

    def __init__(self, model: Any, preprocessing: Preprocessing):
        self.model = model
        self.preprocessing = preprocessing

    @classmethod
    def load(cls, folder: Path, device: str | torch.device, dtype: torch.dtype) -> "Segmentation":
        """The network in a folder as the hub has it (config.json, weights, preprocessor_config.json)."""
        from transformers import Mask2FormerForUniversalSegmentation

        model = Mask2FormerForUniversalSegmentation.from_pretrained(folder, dtype=dtype, local_files_only=True)
        return cls(model.to(device).eval(), Preprocessing.read(folder, PREPROCESSING))

    @torch.inference_mode()
    def classify(self, image: Tensor) -> Tensor:
        """The most probable class of each pixel, (B, H, W) of 0..149."""
        weight = next(self.model.parameters())
        seen = self.preprocessing(image).to(weight.device, weight.dtype)
        found = self.model(pixel_values=seen)
        masks = F.interpolate(found.masks_queries_logits.float(), size=(MASK_SIDE, MASK_SIDE), mode="bilinear")
        classes = found.class_queries_logits.float().softmax(-1)[..., :-1]  # without "nothing"
        score = torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())
        return _argmax_resized(score, (image.shape[-2], image.shape[-1]))

    def __call__(self, image: Tensor) -> Tensor:
        colours = torch.tensor(ADE20K_COLOURS, device=image.device, dtype=torch.float32) / 255
        # the published network has exactly the 150 classes; a network of more repeats the colours
        return colours[self.classify(image).to(image.device) % len(colours)].permute(0, 3, 1, 2).to(image.dtype)


def _argmax_resized(score: Tensor, size: tuple[int, int]) -> Tensor:
    # score (B, C, h, w) -> the class of the highest score after bilinear resizing, (B, *size)
    best = index = None
    for first in range(0, score.shape[1], CHUNK):
        part = F.interpolate(score[:, first : first + CHUNK], size=size, mode="bilinear", align_corners=False)
        value, where = part.max(dim=1)
        if best is None:
            best, index = value, where
        else:
            index = torch.where(value > best, where + first, index)
            best = torch.maximum(value, best)
    assert index is not None
    return index
