"""The captioner beside a public backbone: loaded as the options say, on the device only while it writes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.backbones.memory import Placement, choose_dtype
from models.backbones.options import BackboneOptions
from models.modalities.published import load_captioner


class PlacedCaptioner:
    """A captioner of `models.modalities.published` under a memory plan."""

    def __init__(self, captioner: Any, placement: Placement):
        self.captioner, self.placement = captioner, placement

    @classmethod
    def load(cls, root: Path, options: BackboneOptions, device: torch.device) -> "PlacedCaptioner | None":
        """None when captions are off. Raises MissingWeightsError or ValueError."""
        if options.captions == "none":
            return None
        dtype = choose_dtype(options.dtype, device)
        bits = {"16": None, "8": 8, "4": 4}[options.caption_bits]
        # Quantised networks cannot be moved; and layer by layer a text of 512 tokens would take hours.
        offload = "none" if options.offload == "none" or bits else "model"
        placement = Placement(offload, device)
        captioner = load_captioner(
            options.captions, root, placement.home, dtype, bits, is_sampled=options.official_sampling
        )
        return cls(captioner, placement)

    def caption(self, lr_image: Tensor) -> str:
        """(H, W, 3) in [0, 1] -> what the picture shows, cleaned."""
        with self.placement.use(self.captioner.model):
            return self.captioner.caption(lr_image)
