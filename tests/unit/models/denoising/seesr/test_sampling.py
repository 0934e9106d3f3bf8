"""The sampler takes the steps of diffusers' DDPMScheduler built from Stable Diffusion 2's configuration."""

import pytest
import torch
from diffusers import DDPMScheduler

from models.denoising.seesr.sampling import Schedule, add_noise, ddpm

# as published beside SD2-base, for a scheduler of another class
PUBLISHED = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def official(num_steps):
    scheduler = DDPMScheduler.from_config(PUBLISHED)
    scheduler.set_timesteps(num_steps)
    return scheduler


def predict(noisy, timestep):
    """Stands for a network: any function of latent and timestep that is not linear."""
    return torch.tanh(noisy * (1 + timestep / 1000)) + 0.1


@pytest.mark.parametrize("num_steps", [50, 2, 1, 7, 30])
def test_the_timesteps_are_the_official_ones(num_steps):
    assert Schedule.from_published(PUBLISHED).timesteps(num_steps) == official(num_steps).timesteps.tolist()


def test_fifty_steps_run_from_981_to_1():
    timesteps = Schedule().timesteps(50)
    assert (timesteps[:2], timesteps[-1]) == ([981, 961], 1)


def test_noise_is_added_as_officially():
    latent, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    expected = official(50).add_noise(latent, noise, torch.tensor([999]))
    assert (add_noise(latent, noise, 999, Schedule()) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("num_steps", [50, 7, 1])
def test_every_step_equals_the_official_one(num_steps):
    start = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    scheduler, generator, noisy = official(num_steps), torch.Generator().manual_seed(2), start
    for timestep in scheduler.timesteps:
        step = scheduler.step(predict(noisy, int(timestep)), timestep, noisy, generator=generator)
        noisy = step.prev_sample
    ours = ddpm(predict, start, Schedule(), num_steps, torch.Generator().manual_seed(2))
    assert (ours - noisy).abs().max() < 1e-4


def test_the_seed_decides_and_the_global_generator_does_not():
    start = torch.randn(1, 4, 5, 6)

    def run(seed):
        torch.seed()
        return ddpm(predict, start, Schedule(), 5, torch.Generator().manual_seed(seed))

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_steps_are_told_and_the_input_is_left_alone():
    start, told = torch.randn(1, 4, 5, 6), []
    copy = start.clone()
    ddpm(predict, start, Schedule(), 3, torch.Generator(), told.append)
    assert told == [1, 2, 3]
    assert torch.equal(start, copy)


def test_another_schedule_is_refused():
    for change in ({"prediction_type": "v_prediction"}, {"timestep_spacing": "trailing"}, {"clip_sample": True}):
        with pytest.raises(ValueError, match=next(iter(change))):
            Schedule.from_published(PUBLISHED | change)
    with pytest.raises(ValueError, match="outside"):
        Schedule().timesteps(0)
