"""The losses of fusion training, and what it draws by chance.

Dimension key: B batch  C latent channels  h w latent grid  M modalities
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.backbones.memory import choose_dtype
from training.published.backbone import FusedNetwork
from training.published.cache import FusionBatch
from training.published.objectives import Objective
from training.published.recipe import FusionRecipe


def choose_training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the backbone; auto is bfloat16 on a GPU that has it. Raises ValueError where that would be float16."""
    dtype = choose_dtype(precision, device)
    if dtype == torch.float16:
        raise ValueError("gradients underflow in fp16, and this GPU has no bf16; use --precision fp32")
    return dtype


class TrainedParameters(nn.Module):
    """The parameters of a network that take gradients, the very same: optimiser, average and files need no more."""

    def __init__(self, network: nn.Module):
        super().__init__()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)

    @contextmanager
    def replaced_by(self, other: nn.Module) -> Iterator[None]:
        """While entered, the network has the values of `other` (an average of these), and `other` these."""
        self.swap(other)
        try:
            yield
        finally:
            self.swap(other)

    def swap(self, other: nn.Module) -> None:
        for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
            mine.data, theirs.data = theirs.data, mine.data


class Draws:
    """The random choices of one batch; they depend on seed, process and number of the batch alone."""

    def __init__(self, seed: int, process: int, number: int):
        self.rng = np.random.default_rng((seed, process, number))
        self.generator = torch.Generator().manual_seed(int(self.rng.integers(2**63)))

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like.device)

    def kept(self, num: int, num_modalities: int, dropout: float) -> Tensor:
        """(B, M), 1 for the modalities that a sample sees. Never none: the fused group would only repeat the LR image,
        which inference never asks of it (it is absent there)."""
        kept = torch.rand(num, num_modalities, generator=self.generator) >= dropout
        saved = torch.randint(num_modalities, (num,), generator=self.generator)
        kept[torch.arange(num), saved] |= ~kept.any(1)
        return kept.float()


class FusionLoss:
    """The backbone's own objective on latents, and E[w] = w_bar. Saved and resumed with the run."""

    def __init__(self, network: nn.Module, recipe: FusionRecipe, objective: Objective, num_processes: int = 1):
        self.network, self.recipe, self.objective = network, recipe, objective
        self.num_processes, self.num_batches = num_processes, 0
        self.expected = torch.full((len(recipe.modalities),), recipe.mean_weight)

    def __call__(self, batch: FusionBatch, draws: Draws) -> dict[str, Tensor]:
        recipe, objective, clean = self.recipe, self.objective, batch.clean
        self.num_batches += 1
        timestep = objective.draw(len(clean), draws.generator)
        kept = draws.kept(len(clean), len(recipe.modalities), recipe.modality_dropout)
        noise, timestep = draws.noise(clean), timestep.to(clean.device)
        noisy = objective.mix(clean, noise, timestep)
        predicted, means = self.network(batch, noisy, timestep, kept.to(clean.device))
        learned = objective.loss(predicted, clean, noise, timestep).mean()
        unbiased = (self.expect(means) - recipe.mean_weight).square().sum()
        return {"loss": learned + recipe.unbiased_weight * unbiased, objective.name: learned, "unbiased": unbiased}

    def expect(self, means: Tensor) -> Tensor:
        """E[w] (M,): in value the running mean over batches and processes, in gradient this batch's mean.

        A batch is small; its own mean forced to w_bar would keep the router from telling images apart.
        """
        current = means.detach().clone()
        if self.num_processes > 1:
            torch.distributed.all_reduce(current)
            current /= self.num_processes
        self.expected = torch.lerp(current, self.expected.to(current), self.recipe.mean_memory)
        return means + (self.expected - means).detach()

    def state_dict(self) -> dict[str, Any]:
        return {"expected": self.expected.cpu(), "num_batches": self.num_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.expected, self.num_batches = state["expected"], state["num_batches"]


@torch.no_grad()
def judge(
    network: FusedNetwork, batch: FusionBatch, objective: Objective, timesteps: tuple[float, ...]
) -> tuple[float, float]:
    """Loss with the fusion and of the backbone alone, mean over the batch and fixed timesteps and noise."""
    draws, with_fusion, alone = Draws(0, 0, 0), 0.0, 0.0
    kept = torch.ones(len(batch.clean), len(batch.modalities), device=batch.clean.device)
    for level in timesteps:
        timestep, noise = torch.full((len(batch.clean),), level, device=batch.clean.device), draws.noise(batch.clean)
        noisy = objective.mix(batch.clean, noise, timestep)
        predicted, _ = network(batch, noisy, timestep, kept)
        with_fusion += float(objective.loss(predicted, batch.clean, noise, timestep).mean()) / len(timesteps)
        plain = network.predict(batch, noisy, timestep, None)
        alone += float(objective.loss(plain, batch.clean, noise, timestep).mean()) / len(timesteps)
    return with_fusion, alone
