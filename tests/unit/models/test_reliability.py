"""Reliability, which is ours: where it is off the router is the paper's, and where it is on the maps are looked at."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from models.checkpoint import parse
from models.configs import VISUAL_MODALITIES, M3ESRConfig
from models.routing.reliability import ModalityReliability, ReliabilityConfig, map_cues
from tests.unit.models.tiny import tiny_config, tiny_network

RELIABILITY = ReliabilityConfig(width=8, num_blocks=1, token_channels=16, dino_channels=8)


@pytest.fixture(scope="module")
def network():
    return tiny_network(reliability=RELIABILITY)


@pytest.fixture(scope="module")
def scene(network):
    """(LR image, U, modalities, tokens) of 8 x 10 tokens."""
    lr_image = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    _, coarse_sr, uncertainty_map = network.estimate(lr_image)
    return lr_image, uncertainty_map, *network.render(lr_image, coarse_sr, VISUAL_MODALITIES)


def test_without_it_the_weights_are_the_papers(scene):
    """Section 3.3: sigmoid of the router on the LR image and U, whatever the maps hold."""
    lr_image, uncertainty_map, modalities, _ = scene
    plain = tiny_network()
    assert plain.reliability is None
    weights = plain.route(*scene)
    for name, expected in plain.router(lr_image, uncertainty_map).items():
        assert torch.equal(weights[name], expected)
    noise = {name: torch.rand_like(modality) for name, modality in modalities.items()}
    assert all(torch.equal(weights[name], w) for name, w in plain.route(*scene[:2], noise, scene[3]).items())


def test_it_joins_the_logits_of_the_router(network, scene):
    lr_image, uncertainty_map, modalities, tokens = scene
    log_odds = network.reliability(lr_image, tokens, modalities)
    weights, routed = network.route(*scene), network.router.logits(lr_image, uncertainty_map)
    for name, weight in weights.items():
        assert torch.allclose(weight, (routed[name] + log_odds[name]).sigmoid(), atol=1e-6)


def test_gain_and_centre_scale_and_shift_it(scene):
    lr_image, _, modalities, tokens = scene
    heads = ModalityReliability(replace(RELIABILITY, gain=2.0))
    heads.centre += torch.tensor([0.1, 0.2, 0.3, 0.4])
    with torch.no_grad():
        log_odds = heads(lr_image, tokens, modalities)
        offsets = heads.offsets(lr_image, tokens, {"edge": modalities["edge"]})
    assert set(offsets) == {"edge"}
    assert torch.allclose(offsets["edge"], 2 * (log_odds["edge"] - 0.3), atol=1e-6)


@pytest.mark.parametrize("name", VISUAL_MODALITIES)
def test_damage_to_one_map_changes_its_weight_alone_and_nearby_alone(network, scene, name):
    """A head reads 3 x 3 tokens of cues and 5 x 5 of its answer's: damage is felt 3 tokens away at most."""
    lr_image, uncertainty_map, modalities, tokens = scene
    cell = 1 if name == "dino" else 16
    damaged = modalities[name].clone()
    damaged[..., : 2 * cell, : 2 * cell] = torch.rand_like(damaged[..., : 2 * cell, : 2 * cell])
    before = network.route(*scene)
    after = network.route(lr_image, uncertainty_map, {**modalities, name: damaged}, tokens)
    for other in VISUAL_MODALITIES:
        assert torch.equal(before[other], after[other]) == (other != name)
    changed = (before[name] - after[name])[0].abs() > 1e-6
    assert changed[:2, :2].all()
    assert not changed[5:].any() and not changed[:, 5:].any()


def test_a_modality_that_is_off_has_no_weight(network, scene):
    lr_image, uncertainty_map, modalities, tokens = scene
    every = network.route(*scene)
    some = network.route(lr_image, uncertainty_map, {name: modalities[name] for name in ("depth", "dino")}, tokens)
    assert list(some) == ["depth", "dino"]
    assert all(torch.equal(some[name], every[name]) for name in some)


def test_cues_tell_a_flat_cell_from_a_noisy_one():
    """Means alone would not: noise at the pixel scale averages out."""
    flat = torch.full((1, 3, 32, 32), 0.5)
    noisy = flat + 0.3 * torch.sign(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    spread = [map_cues("segmentation", modality)[:, -3:].mean() for modality in (flat, noisy)]
    assert spread[0] < 1e-3 and spread[1] > 1


def test_a_checkpoint_from_before_loads_without_it():
    values = json.loads(json.dumps(asdict(tiny_config())))
    del values["reliability"]
    assert parse(values, M3ESRConfig) == tiny_config()
    assert parse(json.loads(json.dumps(asdict(tiny_config(reliability=RELIABILITY)))), M3ESRConfig).reliability == (
        RELIABILITY
    )
    assert not any(name.startswith("reliability") for name in tiny_network().state_dict())


def test_heads_are_small():
    """The shipped size: each well under 100,000 parameters."""
    heads = ModalityReliability(ReliabilityConfig())
    assert all(count(head) < 80_000 for head in heads.heads.values()) and count(heads) < 300_000


def count(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())
