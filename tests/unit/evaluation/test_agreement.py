"""Agreement of maps: full with itself, none with another, and found where it is."""

import pytest
import torch

from evaluation.agreement import map_agreement, reference_maps
from models.configs import VISUAL_MODALITIES
from models.resize import resize
from tests.unit.models.tiny import tiny_network


def line(column: int) -> torch.Tensor:
    edges = torch.zeros(1, 3, 32, 32)
    edges[..., column] = 1
    return edges


def test_an_undegraded_image_agrees_with_itself():
    network = tiny_network()
    hr = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    lr_image = resize(hr, (16, 20)).clamp(0, 1)
    given, _ = network.render(lr_image, network.estimate(lr_image)[1], VISUAL_MODALITIES)
    best = {"segmentation": 0, "depth": 0, "dino": 1}
    for name, reference in reference_maps(network, hr, VISUAL_MODALITIES).items():
        agreement = map_agreement(name, given[name], reference)
        assert agreement.shape == (1, 4, 5)
        if name == "edge":
            assert (agreement >= 0.5).all()
        else:
            assert torch.allclose(agreement, torch.full_like(agreement, best[name]), atol=1e-5)


def test_a_difference_counts_in_its_patch():
    given, reference = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    given[..., 16:, :16] = 0.25
    assert map_agreement("depth", given, reference)[0].tolist() == [[0, 0], [-0.25, 0]]


@pytest.mark.parametrize(("moved", "is_found"), [(0, True), (2, True), (3, False), (6, False)])
def test_edges_may_be_two_pixels_off(moved, is_found):
    agreement = map_agreement("edge", line(5), line(5 + moved))[0]
    assert (agreement[:, 0] > 0.9).all() == is_found
    if not is_found:
        assert (agreement[:, 0] < 0.1).all()
    assert agreement[:, 1].tolist() == [0.5, 0.5]  # no edge in either: neither right nor wrong


def test_directions_of_dino_features_count_and_their_lengths_do_not():
    features = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(map_agreement("dino", 5 * features, features), torch.ones(1, 3, 3), atol=1e-5)
    assert torch.allclose(map_agreement("dino", -features, features), -torch.ones(1, 3, 3), atol=1e-5)
