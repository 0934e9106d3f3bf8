"""Ancestral sampling (DDPM) as SeeSR does it: pure functions, so that no two requests share a scheduler's state.

Dimension key: B batch  C channels  h w latent grid
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

EpsilonFn = Callable[[Tensor, int], Tensor]  # (noisy latent, timestep) -> the noise in it
OnStep = Callable[[int], None]  # steps done; raise to cancel

# What the published scheduler_config.json could say and `ddpm` does not do.
FIXED: Mapping[str, Any] = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "clip_sample": False,
    "thresholding": False,
    "variance_type": "fixed_small",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The noise schedule of Stable Diffusion 2, named as in its `scheduler_config.json`."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps_offset: int = 1

    @classmethod
    def from_published(cls, values: Mapping[str, Any]) -> "Schedule":
        """Reads a `scheduler_config.json`, of whatever scheduler class. Raises ValueError on another schedule."""
        for name, expected in FIXED.items():
            if values.get(name, expected) != expected:
                raise ValueError(f"{name} of the scheduler is {values[name]!r}, SeeSR is sampled with {expected!r}")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def signal(self) -> Tensor:
        """(num_train_timesteps,) float64: the share of the signal's power that is left at each timestep, falling."""
        roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps, dtype=torch.float64)
        return torch.cumprod(1 - roots**2, 0)

    def timesteps(self, num_steps: int) -> list[int]:
        """The timesteps of `num_steps` steps, falling: 981, 961 ... 1 for 50. Raises ValueError outside 1..1000."""
        if not 1 <= num_steps <= self.num_train_timesteps:
            raise ValueError(f"num_steps {num_steps} is outside 1..{self.num_train_timesteps}")
        stride = self.num_train_timesteps // num_steps
        return [k * stride + self.steps_offset for k in reversed(range(num_steps))]


def add_noise(latent: Tensor, noise: Tensor, timestep: int | Tensor, schedule: Schedule) -> Tensor:
    """The latent as it would be at `timestep`, of all or (B,) of each, 0..999: (B, C, h, w), float32."""
    signal = schedule.signal()
    left = signal[timestep.long().cpu()] if isinstance(timestep, Tensor) else signal[timestep]
    kept, added = (share.sqrt().to(latent).reshape(-1, 1, 1, 1) for share in (left, 1 - left))
    return kept * latent + added * noise


def ddpm(
    epsilon_fn: EpsilonFn,
    noisy_latent: Tensor,
    schedule: Schedule,
    num_steps: int,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> Tensor:
    """Steps from pure noise, or from a noised LR latent, to a clean latent (B, C, h, w) in float32.

    generator: the request's own; on the CPU a seed gives the same picture on every device. One draw per step
    but the last, whose variance is zero.
    """
    signal = schedule.signal().tolist()
    stride = schedule.num_train_timesteps // num_steps
    for step, timestep in enumerate(schedule.timesteps(num_steps), start=1):
        epsilon = epsilon_fn(noisy_latent, timestep).float()
        before = signal[timestep - stride] if timestep >= stride else 1.0
        noisy_latent, deviation = posterior(noisy_latent.float(), epsilon, signal[timestep], before)
        if deviation > 0:
            noise = torch.randn(noisy_latent.shape, generator=generator, device=generator.device)
            noisy_latent = noisy_latent + deviation * noise.to(noisy_latent)
        if on_step is not None:
            on_step(step)
    return noisy_latent


def posterior(noisy_latent: Tensor, epsilon: Tensor, now: float, before: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of the latent one step earlier, from the signal shares of both timesteps.

    Formula 7 of DDPM (arXiv 2006.11239), "fixed_small" variance.
    """
    step_signal = now / before
    step_noise = 1 - step_signal
    clean = (noisy_latent - (1 - now) ** 0.5 * epsilon) / now**0.5
    mean = before**0.5 * step_noise / (1 - now) * clean + step_signal**0.5 * (1 - before) / (1 - now) * noisy_latent
    return mean, ((1 - before) / (1 - now) * step_noise) ** 0.5
