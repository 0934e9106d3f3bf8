"""What a trained fusion reads beside the LR image: the paper's extractors and the VQGAN encoder, from public weights.

Dimension key: B batch  H W pixels
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones.memory import Placement
from models.modalities.published import PublishedConfig, PublishedExtractor, VqganEncoder

GRID = 16  # pixels per token of DINOv3 and of VQGAN f16


class Guidance:
    """Image -> features of each modality on the grid of tokens."""

    def __init__(self, extractor: PublishedExtractor, vqgan: VqganEncoder, placement: Placement):
        self.extractor, self.vqgan, self.placement = extractor, vqgan, placement
        for network in self.networks:
            placement.add(network)

    @classmethod
    def load(cls, root: Path, names: Iterable[str], dtype: torch.dtype, placement: Placement) -> "Guidance":
        """The extractors of the modalities `names`. Raises MissingWeightsError, which names the command to run."""
        config = PublishedConfig(names=tuple(names))
        extractor = PublishedExtractor.load(root, placement.home, dtype, config)
        return cls(extractor, VqganEncoder.load(root, placement.home, dtype, config.is_quantised), placement)

    @property
    def networks(self) -> list[nn.Module]:
        return [*(network.model for network in self.extractor.networks.values()), self.vqgan.model]

    def read(self, image: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """image (1, 3, H, W) in [0, 1], H and W multiples of 16 -> (1, ., H/16, W/16) for each of `names`, float32.

        Segmentation, depth and edges are rendered as RGB maps and encoded by VQGAN; DINO's features are its patches.
        """
        with self.placement.use(*self.networks):
            seen = self.extractor.extract(image, names)
            return {
                name: (value if name == "dino" else self.vqgan.encode(value)).float() for name, value in seen.items()
            }
