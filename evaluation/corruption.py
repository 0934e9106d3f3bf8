"""Router sanity: one modality's map is damaged; does its weight fall, and what does the damage cost?

The router of the paper reads the LR image and U alone (Section 3.3), so it cannot see a damaged map: its weights know
only where a modality tends to fail. With `models.routing.reliability` beside it the maps count too. This measures it,
whatever the router reads.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.gains import GainMeter, Scene
from models.configs import VISUAL_MODALITIES

KINDS = ("shuffle", "noise")
CELL = 16  # pixels of a rendered map per token
BLIND = (
    "The weights did not change at all: the router reads the LR image and U only, as in the paper, "
    "and cannot see that a map is damaged."
)


@dataclass
class CorruptionMeter:
    """Collects, per modality and kind, mean weights before and after and the change of the loss."""

    meter: GainMeter
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.before: dict[str, list[float]] = {name: [] for name in VISUAL_MODALITIES}
        self.after = {(name, kind): list[float]() for name in VISUAL_MODALITIES for kind in KINDS}
        self.cost = {key: list[float]() for key in self.after}
        self.largest_change = 0.0

    @torch.no_grad()
    def add(self, scene: Scene) -> None:
        routed = self.meter.route(scene)
        loss = float(self.meter.loss(scene, None))
        for name in VISUAL_MODALITIES:
            self.before[name].append(float(routed[name].mean()))
            for kind in KINDS:
                damaged = corrupt(scene.modalities[name], name, kind, self.generator)
                other = replace(scene, modalities={**scene.modalities, name: damaged})
                weights = self.meter.route(other)
                self.after[name, kind].append(float(weights[name].mean()))
                self.cost[name, kind].append(float(self.meter.loss(other, None)) - loss)
                change = max(float((weights[m] - routed[m]).abs().max()) for m in routed)
                self.largest_change = max(self.largest_change, change)

    def summary(self) -> dict[str, Any]:
        """Means over the images; loss_change above 0: the damage made the picture worse."""
        rows = [
            {
                "modality": name,
                "corruption": kind,
                "mean_weight": float(np.mean(self.before[name])),
                "mean_weight_corrupted": float(np.mean(self.after[name, kind])),
                "loss_change": float(np.mean(self.cost[name, kind])),
            }
            for name, kind in self.after
        ]
        return {"rows": rows, "largest_weight_change": self.largest_change, "is_blind": self.largest_change == 0}


def corrupt(modality: Tensor, name: str, kind: str, generator: torch.Generator) -> Tensor:
    """A modality (1, C, H, W) with its tokens in random order, or replaced by noise of its own range and spread."""
    if kind == "noise":
        noise = torch.randn(modality.shape, generator=generator).to(modality)
        mean, spread = modality.mean((-2, -1), keepdim=True), modality.std((-2, -1), keepdim=True)
        noisy = mean + spread.clamp_min(0.1) * noise
        return noisy if name == "dino" else noisy.clamp(0, 1)
    cell = 1 if name == "dino" else CELL
    rows, columns = modality.shape[-2] // cell, modality.shape[-1] // cell
    tokens = modality.unflatten(-2, (rows, cell)).unflatten(-1, (columns, cell)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.randperm(rows * columns, generator=generator).to(modality.device)
    mixed = tokens[:, order].unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return mixed.flatten(4, 5).flatten(2, 3)
