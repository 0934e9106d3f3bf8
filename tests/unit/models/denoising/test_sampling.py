"""Schedules, guidance and Euler steps, beside the official ones and beside closed forms."""

import pytest
import torch

from models.denoising.sampling import euler, flow_sigmas, guide, stock_sigmas
from tests.unit.models.denoising.published import tensors


def test_stock_schedule_is_the_one_dit4sr_was_sampled_with():
    official = tensors("pipeline", "tensors")
    ours = stock_sigmas(40, shift=3.0)
    torch.testing.assert_close(ours, official["schedule40.sigmas"], atol=1e-6, rtol=0)
    torch.testing.assert_close(1000 * ours[:-1], official["schedule40.timesteps"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("schedule", [flow_sigmas, stock_sigmas])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_schedule_falls_from_noise_to_clean(schedule, num_steps):
    sigmas = schedule(num_steps)
    assert sigmas.shape == (num_steps + 1,) and sigmas.dtype == torch.float32
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_moves_steps_to_the_noisy_end():
    torch.testing.assert_close(flow_sigmas(4, shift=1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    torch.testing.assert_close(flow_sigmas(4, shift=3.0), torch.tensor([1, 0.9, 0.75, 0.5, 0]))


@pytest.mark.parametrize("schedule", [flow_sigmas, stock_sigmas])
def test_no_steps_are_refused(schedule):
    with pytest.raises(ValueError, match="num_steps 0"):
        schedule(0)


def test_along_a_straight_path_any_number_of_steps_arrives():
    clean, noise = torch.full((1, 1, 2, 2), 3.0), torch.ones(1, 1, 2, 2)
    for num_steps in (1, 5):
        arrived = euler(lambda latent, sigma: noise - clean, noise, flow_sigmas(num_steps))
        torch.testing.assert_close(arrived, clean)
    assert torch.equal(noise, torch.ones(1, 1, 2, 2))


def test_euler_asks_at_each_sigma_and_reports_each_step():
    sigmas, asked, reported = flow_sigmas(3), [], []

    def velocity(latent, sigma):
        asked.append(sigma)
        return latent

    last = euler(velocity, torch.ones(1), sigmas, lambda step, latent: reported.append((step, latent)))
    assert asked == sigmas[:-1].tolist()
    assert [step for step, _ in reported] == [1, 2, 3]
    assert reported[-1][1] is last


def test_a_step_callback_can_stop_the_run():
    def cancel(step, latent):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        euler(lambda latent, sigma: latent, torch.ones(1), flow_sigmas(3), cancel)


def test_guidance_extrapolates_from_the_unconditional_velocity():
    v_uncond, v_cond = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    torch.testing.assert_close(guide(v_uncond, v_cond, 8.0), torch.tensor([9.0, -14.0]))
    assert torch.equal(guide(v_uncond, v_cond, 1.0), v_cond)
    assert torch.equal(guide(v_uncond, v_cond, 0.0), v_uncond)
