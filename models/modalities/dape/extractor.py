"""The door to DAPE: an LR image in, the tags of the hard prompt and the image tokens of the soft prompt out."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.modalities.dape.network import Tagger, TaggerConfig
from models.modalities.dape.weights import load_tagger
from models.sources import SOURCES

# Data files of RAM's repository, one line per tag, in the order of its scores; they are not inside the checkpoint.
TAGS_FILE = f"{SOURCES['ram-tags'].folder}/ram_tag_list.txt"
THRESHOLDS_FILE = f"{SOURCES['ram-tags'].folder}/ram_tag_list_threshold.txt"


@dataclass(frozen=True)
class ImagePrompt:
    """What DAPE says of an image."""

    tokens: Tensor  # (1, 1 + P, 512): the soft prompt; P is 144 at full size
    tags: tuple[str, ...]  # those whose score is above their threshold, in the list's order


class PromptExtractor:
    """A loaded DAPE. tags, thresholds: one per score of the tagger."""

    def __init__(self, tagger: Tagger, tags: list[str], thresholds: list[float]):
        if not len(tags) == len(thresholds) == tagger.config.num_tags:
            raise ValueError(
                f"{tagger.config.num_tags} tags are scored, but {len(tags)} are named and {len(thresholds)} have a "
                "threshold; fetch the two lists again"
            )
        self.tagger, self.tags, self.thresholds = tagger, tags, torch.tensor(thresholds)

    @classmethod
    def load(cls, root: Path, config: TaggerConfig | None = None) -> "PromptExtractor":
        """Reads RAM, its tag lists and SeeSR's LoRA from the models folder. Raises ValueError with what to do."""
        names = read_lines(root / TAGS_FILE)
        try:
            thresholds = [float(line) for line in read_lines(root / THRESHOLDS_FILE)]
        except ValueError as error:
            raise ValueError(f"{root / THRESHOLDS_FILE}: {error}") from error
        return cls(load_tagger(root, config), names, thresholds)

    def read(self, lr_image: Tensor) -> ImagePrompt:
        """lr_image (1, 3, H, W) in [0, 1]: the image as it was sent, not the upscaled one."""
        tokens = self.tagger.image_tokens(lr_image)
        scores = self.tagger.scores(tokens)[0].float().cpu()
        return ImagePrompt(
            tokens,
            tuple(
                tag
                for tag, score, threshold in zip(self.tags, scores, self.thresholds, strict=True)
                if score > threshold
            ),
        )


def read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; it lies in ram/data of RAM's repository")
    return path.read_text(encoding="utf-8").splitlines()
