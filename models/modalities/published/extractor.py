"""PublishedExtractor: an image in, the rendered maps and features of the paper's extractors out (Sec. 3.2)."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from models.catalogue import MissingWeightsError, missing, require
from models.modalities.edge import canny_edges
from models.modalities.published.config import MODALITIES, PublishedConfig
from models.modalities.published.depth import Depth
from models.modalities.published.dino import Dino
from models.modalities.published.segmentation import Segmentation
from models.sources import SOURCES


class PublishedExtractor:
    """Mask2Former, Depth Anything V2, Canny and DINOv3 over one image. Nothing of it is trained here."""

    def __init__(self, config: PublishedConfig, networks: dict[str, Segmentation | Depth | Dino]):
        self.config = config
        self.networks = networks

    @classmethod
    def load(
        cls,
        root: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        config: PublishedConfig | None = None,
    ) -> "PublishedExtractor":
        """The extractors of config.names from the models folder.

        Raises MissingWeightsError, which names the command that gets them, when one is not there.
        """
        config = config or PublishedConfig()
        networks: dict[str, Segmentation | Depth | Dino] = {}
        if "segmentation" in config.names:
            networks["segmentation"] = Segmentation.load(_folder(root, config.segmentation_source), device, dtype)
        if "depth" in config.names:
            networks["depth"] = Depth.load(_folder(root, config.depth_source), device, dtype)
        if "dino" in config.names:
            networks["dino"] = Dino.load(_folder(root, *config.dino_sources), device, dtype)
        return cls(config, networks)

    def to(self, device: str | torch.device) -> "PublishedExtractor":
        """Move the networks, as a memory plan asks."""
        for network in self.networks.values():
            network.model.to(device)
        return self

    def choose(self, upscaled: Tensor, coarse: Tensor | None) -> Tensor:
        """The image the configuration lets the extractors see; the upscaled one where there is no coarse image."""
        return upscaled if coarse is None or self.config.sees == "upscaled" else coarse

    def extract(self, image: Tensor, names: Iterable[str] = MODALITIES) -> dict[str, Tensor]:
        """What the named extractors see.

        image: (B, 3, H, W) in [0, 1], see `choose`.
        Returns segmentation, depth and edge as RGB maps (B, 3, H, W) in [0, 1] and dino as features (B, C, h, w),
        h = H / 16; on the image's device and in its dtype. Raises ValueError for a name that was not loaded.
        """
        known: dict[str, Callable[[Tensor], Tensor]] = dict(self.networks)
        if "edge" in self.config.names:
            known["edge"] = self._edge
        names = list(names)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"no extractor was loaded for {', '.join(unknown)}; there are {', '.join(known)}")
        return {name: known[name](image) for name in names}

    def _edge(self, image: Tensor) -> Tensor:
        return canny_edges(image, self.config.low, self.config.high).expand(-1, 3, -1, -1)


def _folder(root: Path, *names: str) -> Path:
    for name in names:
        if not missing(root, name):
            return root / SOURCES[name].folder
    require(root, names[0])
    raise MissingWeightsError(str(root))  # not reached: require raised it
