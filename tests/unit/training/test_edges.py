"""Canny in torch, for batches on a GPU."""

import torch
import torch.nn.functional as F

from models.modalities.edge import canny_edges
from training.edges import canny_on_device


def test_it_is_opencvs():
    generator = torch.Generator().manual_seed(0)
    for scale in (2, 3, 5):
        image = F.interpolate(torch.rand(2, 3, 24, 24, generator=generator), scale_factor=scale, mode="bicubic")
        expected, found = canny_edges(image.clamp(0, 1)), canny_on_device(image.clamp(0, 1))
        assert float(expected.mean()) > 0.005 and float((expected != found).float().mean()) < 2e-3


def test_a_weak_edge_counts_only_beside_a_strong_one():
    """Two vertical steps: 25 grey levels are over the low threshold (4 * 25), under the high one (200)."""
    image = torch.zeros(1, 3, 32, 64)
    image[..., 20:] += 26 / 255
    assert float(canny_on_device(image).sum()) == 0.0 == float(canny_edges(image).sum())
    image[..., 16:, 20:] += 60 / 255  # the lower half of the same step is strong
    found = canny_on_device(image)
    assert torch.equal(found, canny_edges(image)) and float(found[..., :15, :].sum()) > 0
