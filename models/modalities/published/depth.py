"""Depth: Depth Anything V2, relative inverse depth in grey."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.modalities.published.preprocessing import Preprocessing
from models.modalities.rendering import render_depth

PREPROCESSING = Preprocessing(size=(518, 518), mode="bicubic", is_aspect_kept=True, multiple=14)


class Depth:
    """(B, 3, H, W) in [0, 1] -> grey (B, 3, H, W) in [0, 1], closer is brighter.

    Each image spans black to white, for the network's depth has neither unit nor origin. The paper does not say how
    it renders depth; grey is what the network's authors show.
    """

    def __init__(self, model: Any, preprocessing: Preprocessing):
        self.model = model
        self.preprocessing = preprocessing

    @classmethod
    def load(cls, folder: Path, device: str | torch.device, dtype: torch.dtype) -> "Depth":
        """The network in a folder as the hub has it (config.json, weights, preprocessor_config.json)."""
        from transformers import DepthAnythingForDepthEstimation

        model = DepthAnythingForDepthEstimation.from_pretrained(folder, dtype=dtype, local_files_only=True)
        return cls(model.to(device).eval(), Preprocessing.read(folder, PREPROCESSING))

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        found = self.model(pixel_values=self.preprocessing(image).to(weight.device, weight.dtype))
        depth = F.interpolate(
            found.predicted_depth.float()[:, None], size=image.shape[-2:], mode="bicubic", align_corners=False
        )
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        return render_depth((depth - low) / (high - low).clamp_min(1e-6)).to(image.device, image.dtype)
