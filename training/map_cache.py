"""The extractors' maps of pairs, degraded and undegraded, computed once for `training.reliability`.

A folder holds one file per modality and draw, `segmentation_000.npy`, and one for the undegraded photographs,
`segmentation_hr.npy`: maps as bytes at half the LR size, DINO features in half precision, edges as bits. Of the draws
also `tokens_000.npy`, the tokens behind the maps.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.agreement import shrink
from models.configs import VISUAL_MODALITIES
from models.network import M3ESR, resize_map
from models.tiling import Tile
from training.image_losses import half_precision
from training.pairs import PairDataset

REFERENCE, TOKENS = "hr", "tokens"
MAP_CELL = 8  # pixels of a rendered map per value that the extractors gave


def write_maps(network: M3ESR, dataset: PairDataset, folder: Path, num_draws: int, photographs: list[int]) -> None:
    """Fills the folder as far as it is not filled. An interrupted draw begins anew.

    Raises ValueError when the folder holds the maps of other photographs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "photographs.json"
    if listed.exists() and json.loads(listed.read_text()) != photographs:
        raise ValueError(f"{folder} holds the maps of other photographs: use another folder or the same --images")
    listed.write_text(json.dumps(photographs))
    for part in (REFERENCE, *(f"{draw:03d}" for draw in range(num_draws))):
        columns: dict[str, list[np.ndarray]] = {name: [] for name in stored_names(part)}
        if all(map_path(folder, name, part).exists() for name in columns):
            continue
        for i in photographs:
            for name, packed in pack(see(network, dataset, i, part)).items():
                columns[name].append(packed)
            if len(columns["edge"]) % 100 == 0:
                print(f"maps {part}: {len(columns['edge'])}/{len(photographs)}", flush=True)
        for name, values in columns.items():
            save(map_path(folder, name, part), np.stack(values))


def stored_names(part: str) -> tuple[str, ...]:
    return VISUAL_MODALITIES if part == REFERENCE else (*VISUAL_MODALITIES, TOKENS)


@torch.no_grad()
def see(network: M3ESR, dataset: PairDataset, photograph: int, part: str) -> dict[str, Tensor]:
    """The maps of one photograph, of batch 1: those of a draw, and the tokens; or the undegraded ones."""
    lr, hr = dataset.pair(photograph, 0 if part == REFERENCE else int(part))
    lr_image = shrink(hr[None]) if part == REFERENCE else lr[None]
    with half_precision(lr_image.device):
        coarse_sr = network.estimate(lr_image)[1].float()
    modalities, tokens = network.render(lr_image, coarse_sr, VISUAL_MODALITIES)
    return modalities if part == REFERENCE else modalities | {TOKENS: tokens}


def pack(maps: dict[str, Tensor]) -> dict[str, np.ndarray]:
    packed = {name: maps[name][0].half().numpy() for name in ("dino", TOKENS) if name in maps}
    packed["edge"] = np.packbits(maps["edge"][0, 0].bool().numpy(), axis=-1)
    for name in ("segmentation", "depth"):
        # the middle of a cell is where the enlarged map still has the extractor's own value
        middle = F.avg_pool2d(maps[name][..., MAP_CELL // 2 - 1 :, MAP_CELL // 2 - 1 :], 2, stride=MAP_CELL)
        packed[name] = (middle[0] * 255).round().byte().numpy()
    return packed


def unpack(name: str, stored: np.ndarray) -> Tensor:
    """Stored maps (B, ...) of a modality -> the form that the fusion takes."""
    if name in ("dino", TOKENS):
        return torch.from_numpy(stored.astype(np.float32))
    if name == "edge":
        edges = torch.from_numpy(np.unpackbits(stored, axis=-1).astype(np.float32))
        return edges[:, None].expand(-1, 3, -1, -1)
    values = torch.from_numpy(stored.astype(np.float32)) / 255
    return resize_map(values, (values.shape[-2] * MAP_CELL, values.shape[-1] * MAP_CELL))


class MapCache:
    """Reads a folder of `write_maps`."""

    def __init__(self, folder: Path, num_draws: int):
        self.rows = {i: row for row, i in enumerate(json.loads((folder / "photographs.json").read_text()))}
        self.num_draws = num_draws
        parts = (REFERENCE, *(f"{draw:03d}" for draw in range(num_draws)))
        self.arrays = {
            (name, part): np.load(map_path(folder, name, part), mmap_mode="r")
            for part in parts
            for name in stored_names(part)
        }

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        rows, columns = self.arrays["dino", REFERENCE].shape[-2:]
        return rows, columns

    def maps(
        self, photograph: int, names: tuple[str, ...], draw: int | None = None, window: Tile | None = None
    ) -> dict[str, Tensor]:
        """Maps (1, C, H, W) of a draw, TOKENS among them if named; without a draw those of the undegraded photograph.

        window: what to cut, in tokens.
        """
        part = REFERENCE if draw is None else f"{draw:03d}"
        window = window or Tile(0, 0, *self.size)
        row, found = self.rows[photograph], {}
        for name in names:
            stored = self.arrays[name, part][row]
            rows, columns = (stored.shape[axis] // self.size[axis] for axis in (-2, -1))  # values, or bytes, per token
            cut = stored[
                ...,
                window.top * rows : (window.top + window.height) * rows,
                window.left * columns : (window.left + window.width) * columns,
            ]
            found[name] = unpack(name, cut[None])
        return found


def map_path(folder: Path, name: str, part: str) -> Path:
    return folder / f"{name}_{part}.npy"


def save(path: Path, values: np.ndarray) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.save(file, values)
    os.replace(temporary, path)
