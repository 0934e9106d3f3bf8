"""The losses of fusion training, and what is trained: router, experts, temperatures and the `*_fused` projections.

Dimension key: B batch  C latent channels  h w latent grid  P LR patches  M modalities
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.backbones.memory import choose_dtype
from models.backbones.quality import Schedule
from models.denoising.sampling import shift_sigmas
from models.denoising.transformer import DiffusionTransformer
from models.fusion.experts import FusionConfig
from models.fusion.joint import JointFusion, JointFusionConfig
from models.routing.router import RouterConfig
from training.published.cache import FusionBatch
from training.published.recipe import FusionRecipe


def choose_training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the backbone; auto is bfloat16 on a GPU that has it. Raises ValueError where that would be float16."""
    dtype = choose_dtype(precision, device)
    if dtype == torch.float16:
        raise ValueError("gradients underflow in fp16, and this GPU has no bf16; use --precision fp32")
    return dtype


def build_fusion(recipe: FusionRecipe, denoiser: DiffusionTransformer, seen: FusionBatch) -> JointFusion:
    """A new fusion for a denoiser; the widths of the features are those of a batch."""
    maps = [value.shape[1] for name, value in seen.modalities.items() if name != "dino"]
    dino = seen.modalities.get("dino")
    fusion = FusionConfig(
        width=denoiser.config.width,
        num_heads=denoiser.config.num_attention_heads,
        modalities=recipe.modalities,
        query=recipe.query,
        is_local=recipe.is_local,
        map_channels=maps[0] if maps else 1,
        dino_channels=1 if dino is None else dino.shape[1],
    )
    router = RouterConfig(modalities=recipe.modalities)
    return JointFusion(JointFusionConfig(weights=recipe.weights, fusion=fusion, router=router), denoiser)


class FusedDenoiser(nn.Module):
    """The denoiser with the fusion beside it, for gradients: of the former only the `*_fused` projections take some.

    What is trained is float32. The backbone keeps the precision it was loaded in; in bfloat16 it runs, fused
    projections and all, under autocast, and the fusion itself in float32, as at inference.
    """

    def __init__(self, denoiser: DiffusionTransformer, fusion: JointFusion):
        super().__init__()
        self.denoiser, self.fusion = denoiser, fusion
        denoiser.requires_grad_(False)
        for name, module in denoiser.named_modules():
            if name.endswith("_fused"):
                module.float().requires_grad_(True)
        fusion.float().requires_grad_(True)
        # an encoder that no modality asks would take no gradient, and several processes would wait for it
        modalities = set(fusion.config.fusion.modalities)
        fusion.fusion.dino_projection.requires_grad_("dino" in modalities)
        fusion.fusion.map_encoder.requires_grad_(bool(modalities - {"dino"}))
        self.dtype = denoiser.proj_out.weight.dtype

    def forward(self, batch: FusionBatch, noisy_latent: Tensor, sigma: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, C, h, w) at sigma (B,), and the mean of each modality's weights (M,).

        kept (B, M): 1 or 0. A weight of 0 takes an expert out of the sum of Eq. 14, as if it were not asked.
        """
        routed = self.fusion.router(batch.small, batch.uncertainty)
        weights = {name: kept[:, m, None, None] * routed[name] for m, name in enumerate(batch.modalities)}
        prepared = self.fusion.prepare(batch.lr_latent, batch.modalities, weights)
        timestep = 1000 * sigma
        fused = self.fusion(prepared, timestep)
        means = torch.stack([routed[name].mean() for name in batch.modalities])
        return self.velocity(batch, noisy_latent, timestep, fused), means

    def velocity(self, batch: FusionBatch, noisy_latent: Tensor, timestep: Tensor, fused: Tensor | None) -> Tensor:
        """(B, C, h, w) float32; without fused tokens that of DiT4SR."""
        with torch.autocast(noisy_latent.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.denoiser(
                noisy_latent.to(self.dtype),
                batch.lr_latent.to(self.dtype),
                batch.text_embeddings.to(self.dtype),
                batch.pooled.to(self.dtype),
                timestep,
                None if fused is None else fused.to(self.dtype),
            ).float()


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

    def sigmas(self, num: int, schedule: Schedule) -> Tensor:
        """(B,) from the shifted table of the scheduler at logit-normal places, as SD3 and DiT4SR are trained."""
        place = torch.randn(num, generator=self.generator).sigmoid()
        index = (place * schedule.num_train_steps).long().clamp(max=schedule.num_train_steps - 1)
        return shift_sigmas(1 - index / schedule.num_train_steps, schedule.shift)

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
    """Flow matching on latents, and E[w] = w_bar. Saved and resumed with the run."""

    def __init__(self, network: nn.Module, recipe: FusionRecipe, schedule: Schedule, num_processes: int = 1):
        self.network, self.recipe, self.schedule = network, recipe, schedule
        self.num_processes, self.num_batches = num_processes, 0
        self.expected = torch.full((len(recipe.modalities),), recipe.mean_weight)

    def __call__(self, batch: FusionBatch, draws: Draws) -> dict[str, Tensor]:
        recipe = self.recipe
        self.num_batches += 1
        sigma = draws.sigmas(len(batch.clean), self.schedule)
        kept = draws.kept(len(batch.clean), len(recipe.modalities), recipe.modality_dropout)
        noise, sigma = draws.noise(batch.clean), sigma.to(batch.clean.device)
        velocity, means = self.network(batch, mix(batch.clean, noise, sigma), sigma, kept.to(batch.clean.device))
        flow = flow_loss(velocity, batch.clean, noise, sigma).mean()
        unbiased = (self.expect(means) - recipe.mean_weight).square().sum()
        return {"loss": flow + recipe.unbiased_weight * unbiased, "flow": flow, "unbiased": unbiased}

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


def mix(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The latent at sigma (B,), 0 clean .. 1 noise."""
    level = sigma[:, None, None, None]
    return (1 - level) * clean + level * noise


def flow_loss(velocity: Tensor, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(B,): squared error of the clean latent that the velocity points to, x - sigma v. That is sigma^2 times the
    velocity's, as DiT4SR is trained (its `precondition_outputs`); the paper does not say."""
    return (sigma[:, None, None, None] * (velocity - (noise - clean))).square().mean((1, 2, 3))


@torch.no_grad()
def judge(
    network: FusedDenoiser, batch: FusionBatch, schedule: Schedule, sigmas: tuple[float, ...]
) -> tuple[float, float]:
    """Flow loss with the fusion and of the backbone alone, mean over the batch and fixed sigmas and noise."""
    draws, with_fusion, alone = Draws(0, 0, 0), 0.0, 0.0
    kept = torch.ones(len(batch.clean), len(batch.modalities), device=batch.clean.device)
    for level in sigmas:
        sigma, noise = torch.full((len(batch.clean),), level, device=batch.clean.device), draws.noise(batch.clean)
        noisy = mix(batch.clean, noise, sigma)
        velocity, _ = network(batch, noisy, sigma, kept)
        with_fusion += float(flow_loss(velocity, batch.clean, noise, sigma).mean()) / len(sigmas)
        plain = network.velocity(batch, noisy, 1000 * sigma, None)
        alone += float(flow_loss(plain, batch.clean, noise, sigma).mean()) / len(sigmas)
    return with_fusion, alone
