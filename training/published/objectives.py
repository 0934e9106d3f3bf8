"""What a frozen denoiser was trained to predict, so what its fusion is trained on.

Timesteps are 0 (clean) .. 1000 (noise) for both.

Dimension key: B batch  C latent channels  h w latent grid
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from models.backbones.quality import Schedule as FlowSchedule
from models.denoising.sampling import shift_sigmas
from models.denoising.seesr.sampling import Schedule as NoiseSchedule
from models.denoising.seesr.sampling import add_noise


class Objective(ABC):
    """Which timesteps are drawn, what the denoiser sees there, and what its answer is measured against."""

    name: ClassVar[str]  # of the loss, in the log

    @abstractmethod
    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Timesteps (B,) of `num` samples."""

    @abstractmethod
    def mix(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The noisy latent (B, C, h, w) at timesteps (B,)."""

    @abstractmethod
    def loss(self, predicted: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """(B,) of the answer (B, C, h, w) to the noisy latent."""


@dataclass(frozen=True)
class FlowMatching(Objective):
    """SD3's: the velocity noise - clean; sigma is timestep / 1000."""

    schedule: FlowSchedule = field(default_factory=FlowSchedule)
    name: ClassVar[str] = "flow"

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """From the shifted table of the scheduler at logit-normal places, as SD3 and DiT4SR are trained."""
        place, length = torch.randn(num, generator=generator).sigmoid(), self.schedule.num_train_steps
        index = (place * length).long().clamp(max=length - 1)
        return 1000 * shift_sigmas(1 - index / length, self.schedule.shift)

    def mix(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        level = (timestep / 1000)[:, None, None, None]
        return (1 - level) * clean + level * noise

    def loss(self, predicted: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Squared error of the clean latent that the velocity points to, x - sigma v. That is sigma^2 times the
        velocity's, as DiT4SR is trained (its `precondition_outputs`); the paper does not say."""
        level = (timestep / 1000)[:, None, None, None]
        return (level * (predicted - (noise - clean))).square().mean((1, 2, 3))


@dataclass(frozen=True)
class NoisePrediction(Objective):
    """SD 2.1 base's and SeeSR's: the noise itself (epsilon); SD 2.1's other checkpoint, at 768 px, predicts v."""

    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    name: ClassVar[str] = "noise"

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Every timestep alike, as SD 2 and SeeSR are trained; the paper does not say."""
        return torch.randint(self.schedule.num_train_timesteps, (num,), generator=generator).float()

    def mix(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return add_noise(clean, noise, timestep, self.schedule)

    def loss(self, predicted: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return (predicted - noise).square().mean((1, 2, 3))
