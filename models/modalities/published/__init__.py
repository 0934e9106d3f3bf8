"""The paper's own extractors, from public weights: segmentation, depth, edge, DINO, captions, and VQGAN for the maps.

transformers and diffusers are imported when something is loaded, never before.
"""

from models.modalities.published.captions import Captioner, FixedCaption, clean_caption, load_captioner
from models.modalities.published.config import PublishedConfig
from models.modalities.published.extractor import PublishedExtractor
from models.modalities.published.vqgan import VqganEncoder

__all__ = [
    "Captioner",
    "FixedCaption",
    "PublishedConfig",
    "PublishedExtractor",
    "VqganEncoder",
    "clean_caption",
    "load_captioner",
]
