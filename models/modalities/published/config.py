"""Which published extractors are used, and how."""

from dataclasses import dataclass
from typing import Literal

MODALITIES = ("segmentation", "depth", "edge", "dino")


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """The extractors of `quality` and `fidelity`. The paper (Sec. 3.2) names families, not sizes: these are ours.

    sees: the image that the extractors get, the upscaled LR image or the coarse network's. The paper is silent; at
    512 px both put VQGAN's, DINO's and the denoiser's tokens on one 32 x 32 grid.
    dino_sources: the first that lies in the models folder is loaded.
    low, high: Canny's thresholds, see models/modalities/edge.py.
    is_quantised: whether VQGAN's latents are the nearest codes or what comes before them; the paper does not say.
    """

    names: tuple[str, ...] = MODALITIES
    sees: Literal["upscaled", "coarse"] = "upscaled"
    segmentation_source: str = "mask2former"
    depth_source: str = "depth-anything"
    dino_sources: tuple[str, ...] = ("dinov3", "dinov3-timm")
    low: int = 100
    high: int = 200
    is_quantised: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.names) - set(MODALITIES)):
            raise ValueError(f"unknown modality {', '.join(unknown)}; known: {', '.join(MODALITIES)}")
        if self.sees not in ("upscaled", "coarse"):
            raise ValueError(f"extractors see 'upscaled' or 'coarse', not {self.sees!r}")
