"""What fusion training asks of a public backbone: `quality.py` and `fidelity.py` answer, all else is common.

Dimension key: B batch  C latent channels  h w latent grid  M modalities
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones.memory import Placement
from models.backbones.vae import TiledVae
from models.fusion.image_tokens import ImageTokenFusion
from models.fusion.joint import JointFusion
from training.published.cache import FusionBatch, Tensors
from training.published.objectives import Objective
from training.published.recipe import FusionRecipe

ReadText = Callable[[str], Tensors]  # a prompt -> what the backbone is told of it
ReadPair = Callable[[Tensor, Tensor], Tensors]  # LR and work image (1, 3, ., .) -> what the backbone is told of them


class FusedNetwork(nn.Module, ABC):
    """A frozen backbone with the fusion beside it, for gradients.

    What is trained is float32. The backbone keeps the precision it was loaded in, the fusion runs in float32, as at
    inference.
    """

    def __init__(self, fusion: JointFusion | ImageTokenFusion):
        super().__init__()
        self.fusion = fusion.float().requires_grad_(True)
        # an encoder that no modality asks would take no gradient, and several processes would wait for it
        modalities = set(fusion.config.fusion.modalities)
        for name, module in fusion.named_modules():
            if name.endswith("dino_projection"):
                module.requires_grad_("dino" in modalities)
            if name.endswith(("map_encoder", "map_projection")):
                module.requires_grad_(bool(modalities - {"dino"}))

    def forward(
        self, batch: FusionBatch, noisy_latent: Tensor, timestep: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The denoiser's answer (B, C, h, w) at timesteps (B,), and the mean of each modality's weights (M,).

        kept (B, M): 1 or 0. A weight of 0 takes an expert out of the sum of Eq. 14, as if it were not asked.
        """
        routed = self.fusion.router(batch.small, batch.uncertainty)
        weights = {name: kept[:, m, None, None] * routed[name] for m, name in enumerate(batch.modalities)}
        prepared = self.fusion.prepare(batch.lr_latent, batch.modalities, weights)
        fused = self.fusion(prepared, timestep)
        means = torch.stack([routed[name].mean() for name in batch.modalities])
        return self.predict(batch, noisy_latent, timestep, fused), means

    @abstractmethod
    def predict(self, batch: FusionBatch, noisy_latent: Tensor, timestep: Tensor, fused: Tensor | None) -> Tensor:
        """(B, C, h, w) float32; without fused tokens that of the backbone alone."""

    @abstractmethod
    def checkpoint(self) -> None:
        """For training in less memory: what the backbone's blocks compute is not kept, but computed twice."""


class Backbone(ABC):
    """One profile, as training sees it. Each method loads what it needs; nothing is kept."""

    @abstractmethod
    def check_installed(self, root: Path, weights: str) -> None:
        """Raises MissingWeightsError when the models folder lacks something, ValueError on unknown weights."""

    def has_t5(self, root: Path) -> bool:
        return False

    @abstractmethod
    def objective(self, root: Path | None) -> Objective:
        """By the published scheduler's file; without a folder the published values."""

    @abstractmethod
    def load_text(self, root: Path, weights: str, device: torch.device, dtype: torch.dtype) -> ReadText:
        """The text encoders, as inference asks them."""

    @abstractmethod
    def load_vae(self, root: Path, placement: Placement, dtype: torch.dtype) -> TiledVae: ...

    def load_reader(self, root: Path, placement: Placement) -> ReadPair:
        """What the backbone is told of the LR image beside its latent."""
        return lambda lr, work: {}

    @abstractmethod
    def load(self, root: Path, weights: str, device: torch.device, dtype: torch.dtype) -> Any:
        """The frozen denoiser."""

    @abstractmethod
    def random(self, device: torch.device, dtype: torch.dtype, *, is_tiny: bool) -> Any:
        """The denoiser with random weights, at full size or tiny, to measure what a step costs."""

    @abstractmethod
    def random_conditions(self, denoiser: Any, side: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what the denoiser is told of one sample, for a latent of `side` cells; "clean" is the latent."""

    @abstractmethod
    def fuse(self, denoiser: Any, recipe: FusionRecipe, seen: FusionBatch) -> FusedNetwork:
        """A new fusion beside it; the widths of the features are those of a batch."""

    @abstractmethod
    def save(self, path: Path, network: FusedNetwork) -> None:
        """The file that the profile loads. Whole or not at all."""


def feature_widths(seen: FusionBatch) -> tuple[int, int]:
    """Channels of the encoded maps and of DINO's features in a batch; 1 where none is there."""
    maps = [value.shape[1] for name, value in seen.modalities.items() if name != "dino"]
    return maps[0] if maps else 1, seen.modalities["dino"].shape[1] if "dino" in seen.modalities else 1
