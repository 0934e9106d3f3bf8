"""A grid goes, a picture stays."""

import pytest
import torch

from evaluation.metrics import grid_energy
from models.deblock import even_phases, phase_excess


def picture(height: int = 128, width: int = 160) -> torch.Tensor:
    """Smooth noise without a preferred phase, (1, 3, height, width) in [0, 1]."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (0.5 + 0.1 * torch.nn.functional.avg_pool2d(noise, 3, 1, 1)).clamp(0, 1)


def with_grid(image: torch.Tensor, excess: float) -> torch.Tensor:
    """Larger steps at one phase of the columns, as a decoder with a stride leaves them."""
    gridded = image.clone()
    step = image.diff(dim=-1)[..., 3::8] * excess
    gridded[..., 3:-1:8] -= step / 2
    gridded[..., 4::8] += step / 2
    return gridded


def as_bytes(image: torch.Tensor):
    return (image[0].permute(1, 2, 0) * 255).round().byte().numpy()


@pytest.mark.parametrize("axis", ["columns", "rows"])
def test_a_grid_goes(axis):
    image = with_grid(picture(), 0.15)
    image = image if axis == "columns" else image.transpose(-1, -2).contiguous()
    before = grid_energy(as_bytes(image))
    after = grid_energy(as_bytes(even_phases(image.clone(), 0.1)))
    assert before > 0.1 and after < 0.35 * before


def test_the_excess_is_told_per_phase():
    excess = phase_excess(with_grid(picture(), 0.15))
    assert int(excess.argmax()) == 3
    assert float(excess[3]) == pytest.approx(0.15, abs=0.05)


def test_single_edges_are_left_alone():
    image = torch.zeros(1, 3, 256, 256)
    image[..., 100:] = 1.0
    assert (
        float((even_phases(image.clone(), 0.1) - image).abs().max()) < 0.04
    )  # its two windows vote, the other 30 do not


def test_flat_and_small_images_and_a_limit_of_zero_change_nothing():
    flat = torch.full((1, 3, 128, 128), 0.3)
    small = torch.rand(1, 3, 40, 40)
    gridded = with_grid(picture(), 0.15)
    for image, limit in ((flat, 0.1), (small, 0.1), (gridded, 0.0)):
        assert torch.equal(even_phases(image.clone(), limit), image)


def test_bands_give_what_the_whole_gives(monkeypatch):
    gridded = with_grid(picture(), 0.15)
    whole = even_phases(gridded.clone(), 0.1)
    monkeypatch.setattr("models.deblock.BAND", 37)
    assert torch.allclose(even_phases(gridded.clone(), 0.1), whole, atol=1e-6)


def test_no_step_changes_beyond_the_limit():
    gridded = with_grid(picture(), 2.0)
    evened = even_phases(gridded.clone(), 0.02)
    assert float((evened - gridded).abs().max()) <= 3 * 0.02 * float(gridded.diff(dim=-1).abs().max())
