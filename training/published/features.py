"""Runs the frozen networks of a profile over all pairs and captions, before training: then they leave the memory.

Dimension key: B batch  H W pixels  h w latent grid
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from models.backbones.coarse import SCALE, CoarseEstimator
from models.backbones.guidance import GRID, Guidance
from models.backbones.memory import Placement, TileSizes
from models.backbones.sizes import WorkSizes, enlarge
from models.catalogue import require
from models.resize import resize
from training.pairs import PairDataset
from training.published.backbone import Backbone
from training.published.cache import CacheOrigin, FeatureCache
from training.published.recipe import FusionRecipe

NULL_CAPTION = ""
NUM_HELD_OUT = 8  # pairs that are judged on
Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Which of several processes this is: it makes every `of`-th file."""

    index: int = 0
    of: int = 1

    def take(self, paths: Iterable[tuple[Path, Item]]) -> list[tuple[Path, Item]]:
        """What is missing of its share; the shares are fixed, whatever the others have made by now."""
        return [item for item in list(paths)[self.index :: self.of] if not item[0].exists()]


def open_pairs(folder: Path) -> PairDataset:
    """Raises ValueError when the folder holds no pairs, or such as cannot lie on one grid of tokens."""
    if not (folder / "index.json").is_file():
        raise ValueError(f"{folder} holds no pairs (no index.json); make them with: python -m training.pairs")
    try:
        pairs = PairDataset(folder)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no pairs that can be read ({error})") from error
    side = pairs.pair(pairs.training[0])[1].shape[-1]
    if pairs.scale != SCALE or side % GRID:
        raise ValueError(
            f"{folder} holds pairs of {side} px, x{pairs.scale}; sides must be multiples of {GRID} px, x{SCALE}"
        )
    return pairs


def read_captions(path: Path | None, pairs: PairDataset) -> list[str]:
    """The caption of every photograph, empty where there is none.

    path: JSON {"name of the photograph": "caption"}. Raises ValueError on anything else, or when none fits.
    """
    names = pairs.index["names"]
    if path is None:
        return [NULL_CAPTION] * len(names)
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(told, dict) or not all(isinstance(caption, str) for caption in told.values()):
        raise ValueError(f'{path} must hold {{"name of the photograph": "caption", ...}}')
    if not set(names) & set(told):
        raise ValueError(f"{path} has no caption of any photograph in {pairs.folder}")
    return [" ".join(told.get(name, NULL_CAPTION).split()) for name in names]


def origin_of(root: Path, backbone: Backbone, pairs: PairDataset, recipe: FusionRecipe) -> CacheOrigin:
    index = {key: value for key, value in pairs.index.items() if key != "num_draws"}  # more draws are welcome
    return CacheOrigin(
        pairs=hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest(),
        weights=recipe.weights,
        modalities=recipe.modalities,
        has_t5=backbone.has_t5(root),
    )


def wanted_pairs(pairs: PairDataset) -> list[tuple[int, int]]:
    """(photograph, draw): all that is trained on, and the first held out ones."""
    training = [(i, draw) for draw in range(pairs.num_draws) for i in pairs.training]
    return training + [(i, 0) for i in pairs.held_out[:NUM_HELD_OUT]]


@torch.no_grad()
def write_texts(
    cache: FeatureCache,
    captions: Sequence[str],
    root: Path,
    backbone: Backbone,
    weights: str,
    device: torch.device,
    dtype: torch.dtype,
    share: Share,
) -> None:
    """Embeddings of every caption and of the empty one, as inference encodes them."""
    todo = share.take((cache.text_path(text), text) for text in sorted({NULL_CAPTION, *captions}))
    if not todo:
        return
    read = backbone.load_text(root, weights, device, dtype)
    for path, text in todo:
        cache.write(path, read(text))


class PairReader:
    """VAE, coarse network, extractors and VQGAN, as the profile loads and asks them."""

    def __init__(self, root: Path, backbone: Backbone, recipe: FusionRecipe, device: torch.device, dtype: torch.dtype):
        placement = Placement("none", device)
        self.device, self.modalities = device, recipe.modalities
        self.vae = backbone.load_vae(root, placement, dtype)
        coarse = CoarseEstimator.find(root, placement)
        if coarse is None:
            require(root, "coarse")
        self.coarse = coarse
        self.guidance = Guidance.load(root, recipe.modalities, dtype, placement)
        self.read_more = backbone.load_reader(root, placement)

    def read_hr(self, hr_image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(3, H, W) in [0, 1] -> its latent: the posterior's mode. DiT4SR and SeeSR drew one; the paper is silent."""
        return {"clean": self.vae.encode(hr_image[None].to(self.device), TileSizes())[0]}

    def read_lr(self, lr_image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(3, H/4, W/4) in [0, 1] -> all that fusion and backbone read of it, as `PublishedUpscaler` makes it."""
        assert self.coarse is not None
        lr = lr_image[None].to(self.device)
        height, width = lr.shape[-2:]
        size = SCALE * height, SCALE * width
        sizes = WorkSizes((height, width), size, size)
        work = enlarge(lr, sizes)
        uncertainty = torch.from_numpy(self.coarse.maps(lr, sizes, work, (size[1], size[0]))["uncertainty"])
        small = resize(work, (4 * uncertainty.shape[0], 4 * uncertainty.shape[1])).clamp(0, 1)
        seen = self.guidance.read(work, self.modalities)
        return {
            "lr_latent": self.vae.encode(work, TileSizes())[0],
            "small": small[0],
            "uncertainty": uncertainty[None],
            **{name: value[0] for name, value in seen.items()},
            **self.read_more(lr, work),
        }


@torch.no_grad()
def write_images(
    cache: FeatureCache,
    pairs: PairDataset,
    root: Path,
    backbone: Backbone,
    recipe: FusionRecipe,
    device: torch.device,
    dtype: torch.dtype,
    share: Share,
) -> None:
    """Latents, uncertainty and modalities of every pair. Whole photographs, unturned: crops could not be kept."""
    wanted = wanted_pairs(pairs)
    hr_todo = share.take((cache.hr_path(i), i) for i in sorted({i for i, _ in wanted}))
    lr_todo = share.take((cache.lr_path(i, draw), (i, draw)) for i, draw in wanted)
    if not hr_todo and not lr_todo:
        return
    reader = PairReader(root, backbone, recipe, device, dtype)
    for path, i in hr_todo:
        cache.write(path, reader.read_hr(pairs.pair(i)[1]))
    for done, (path, place) in enumerate(lr_todo, start=1):
        cache.write(path, reader.read_lr(pairs.pair(*place)[0]))
        if done % 100 == 0 and share.index == 0:
            print(f"features {done}/{len(lr_todo)}", flush=True)
