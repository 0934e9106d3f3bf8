"""Noise schedules and the Euler sampler: pure functions, so that no two requests share any state."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

VelocityFn = Callable[[Tensor, float], Tensor]  # (noisy latent, sigma in [0, 1]) -> velocity
OnStep = Callable[[int, Tensor], None]  # (steps done, latent); raise to cancel


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Moves steps towards the noisy end: shift * sigma / (1 + (shift - 1) * sigma)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def flow_sigmas(num_steps: int, shift: float = 3.0) -> Tensor:
    """(num_steps + 1,) float32 from 1 (noise) down to 0 (clean); `shift` 1 spaces them evenly."""
    check_steps(num_steps)
    return shift_sigmas(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).float()


def stock_sigmas(num_steps: int, shift: float = 3.0, num_train_steps: int = 1000) -> Tensor:
    """(num_steps + 1,) float32: the schedule that SD3.5 and DiT4SR are really sampled with.

    The stock scheduler stores its smallest sigma after shifting and later shifts the whole range again, so
    the last step starts from 0.0089 (40 steps, shift 3) instead of about 0.07. `quality` repeats it, because
    its results are compared with theirs.
    """
    check_steps(num_steps)
    smallest = shift_sigmas(torch.tensor(1 / num_train_steps, dtype=torch.float64), shift)
    evenly = torch.linspace(1, float(smallest), num_steps, dtype=torch.float64)
    return torch.cat([shift_sigmas(evenly, shift), torch.zeros(1, dtype=torch.float64)]).float()


def check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} must be at least 1")


def guide(v_uncond: Tensor, v_cond: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance; `cfg_scale` 1 is the conditional velocity itself.

    Both velocities usually come from one batch: `guide(*velocity.chunk(2), cfg_scale)`, unconditional first.
    """
    return torch.lerp(v_uncond, v_cond, cfg_scale)


def euler(velocity_fn: VelocityFn, noisy_latent: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Follows the velocity from `sigmas[0]` to `sigmas[-1]` in straight steps; the input is left as it was.

    Args:
        velocity_fn: called once per step with the latent and its sigma.
        noisy_latent: (B, C, h, w) at `sigmas[0]`.
        sigmas: (num_steps + 1,), falling.
        on_step: called after each step with the number of steps done and the new latent.
    """
    levels = sigmas.tolist()
    for step, (sigma, sigma_next) in enumerate(pairwise(levels), start=1):
        noisy_latent = noisy_latent + (sigma_next - sigma) * velocity_fn(noisy_latent, sigma)
        if on_step is not None:
            on_step(step, noisy_latent)
    return noisy_latent
