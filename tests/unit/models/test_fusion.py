"""Facts of Section 3.3 and 3.4: fusion, experts, temperatures."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.fusion.experts import FusionConfig, ModalityExpert
from models.fusion.fusion import ModalityFusion
from models.fusion.temperature import TemperatureSchedule

CONFIG = FusionConfig(width=16, num_heads=2, map_width=8, dino_channels=8)


def fusion_and_inputs(config: FusionConfig = CONFIG):
    torch.manual_seed(0)
    fusion = ModalityFusion(config, time_width=16)
    z = torch.randn(2, 9, 16)
    modalities = {name: torch.rand(2, 3, 48, 48) for name in ("segmentation", "depth", "edge")}
    modalities["dino"] = torch.randn(2, 8, 3, 3)
    weights = {name: torch.rand(2, 9) for name in config.modalities}
    return fusion, z, modalities, weights


def temperatures(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((2,), value) for name in CONFIG.modalities}


def test_with_no_trust_in_any_expert_the_lr_latent_passes_unchanged():
    fusion, z, modalities, weights = fusion_and_inputs()
    prepared = fusion.prepare(z, modalities, {n: torch.zeros_like(w) for n, w in weights.items()})
    assert torch.equal(fusion.fuse(prepared, temperatures(0.5)), z)


def test_fusion_is_z_plus_the_weighted_sum_of_experts():
    """Eq. 14, written out."""
    fusion, z, modalities, weights = fusion_and_inputs()
    fused = fusion.fuse(fusion.prepare(z, modalities, weights), temperatures(0.7))
    expected = z.clone()
    for name in CONFIG.modalities:
        tokens = fusion.tokens(name, modalities[name])
        expected += weights[name][..., None] * fusion.experts[name](z, tokens, torch.full((2,), 0.7))
    assert torch.allclose(fused, expected, atol=1e-5)


def test_a_modality_that_is_off_takes_no_part():
    fusion, z, modalities, weights = fusion_and_inputs()
    some = {name: modalities[name] for name in ("depth", "dino")}
    without = fusion.fuse(fusion.prepare(z, some, weights), temperatures(0.5))
    silenced = weights | {name: torch.zeros(2, 9) for name in ("segmentation", "edge")}
    assert torch.allclose(without, fusion.fuse(fusion.prepare(z, modalities, silenced), temperatures(0.5)), atol=1e-6)


def test_the_literal_query_comes_from_the_modality():
    """Eq. 15: SoftMax(Q(m) K(z) / tau) V(z), with plain attention's 1/sqrt(K) kept."""
    torch.manual_seed(1)
    expert = ModalityExpert(CONFIG)
    z, tokens = torch.randn(1, 9, 16), torch.randn(1, 9, 16)
    patch, modality = expert.norm_patch(z), expert.norm_modality(tokens)
    q, k, v = (expert.split_heads(x) for x in (expert.to_query(modality), expert.to_key(patch), expert.to_value(patch)))
    attended = (q @ k.transpose(-1, -2) / (8**0.5 * 0.3)).softmax(-1) @ v
    expected = expert.to_output(attended.transpose(1, 2).flatten(2))
    assert torch.allclose(expert(z, tokens, torch.tensor([0.3])), expected, atol=1e-5)


def test_the_other_reading_lets_each_patch_ask_any_number_of_tokens():
    """Eq. 2: one row per LR patch, whatever L is."""
    expert = ModalityExpert(FusionConfig(width=16, num_heads=2, query="patch"))
    assert expert(torch.randn(1, 9, 16), torch.randn(1, 25, 16), torch.tensor([0.5])).shape == (1, 9, 16)


def test_the_literal_reading_refuses_grids_that_differ():
    with pytest.raises(ValueError, match="as many modality tokens as LR patches, got 25 and 9"):
        ModalityExpert(CONFIG)(torch.randn(1, 9, 16), torch.randn(1, 25, 16), torch.tensor([0.5]))


def test_a_low_temperature_attends_more_sharply():
    torch.manual_seed(2)
    expert = ModalityExpert(CONFIG)
    q, k, *_ = expert.project(torch.randn(1, 9, 16), torch.randn(1, 9, 16))
    entropy = {}
    for tau in (0.1, 1.0):
        share = (q @ k.transpose(-1, -2) / (8**0.5 * tau)).softmax(-1)
        entropy[tau] = -(share * share.clamp_min(1e-12).log()).sum(-1).mean()
    assert entropy[0.1] < entropy[1.0]


@pytest.mark.parametrize("extreme", [0.0, -50.0, 50.0])
def test_every_temperature_lies_between_zero_and_one(extreme):
    """Eq. 15 with t in [0, 1], also where alpha and beta saturate."""
    torch.manual_seed(3)
    schedule = TemperatureSchedule(8, 4)
    for layer in (schedule.to_alpha, schedule.to_beta):
        nn.init.normal_(layer.weight, std=3.0)
        layer.bias.data.add_(extreme)
    sigma = torch.linspace(0, 1, 101)
    tau = schedule(sigma, torch.randn(101, 8))
    assert tau.shape == (101, 4)
    assert ((tau > 0) & (tau < 1)).all()


def test_temperature_follows_the_equation():
    torch.manual_seed(4)
    schedule, embedding = TemperatureSchedule(8, 2), torch.randn(3, 8)
    nn.init.normal_(schedule.to_alpha.weight)
    nn.init.normal_(schedule.to_beta.weight)
    t = torch.tensor([0.0, 0.3, 1.0])
    s = schedule.to_alpha(embedding).sigmoid() * torch.exp(-nn.functional.softplus(schedule.to_beta(embedding)))
    expected = t[:, None] * s + (1 - t[:, None]) * (1 - s)
    assert torch.allclose(schedule(t, embedding), expected, atol=1e-3)


def test_before_training_no_modality_is_preferred():
    tau = TemperatureSchedule(8, 4)(torch.linspace(0, 1, 5), torch.randn(5, 8))
    assert torch.allclose(tau, torch.full_like(tau, 0.5), atol=1e-5)


def test_a_local_expert_reads_its_own_place_first_and_far_places_last():
    torch.manual_seed(3)
    expert = ModalityExpert(replace(CONFIG, query="patch", is_local=True))
    bias = expert.distance((3, 4)).unflatten(1, (3, 4)).unflatten(-1, (3, 4))  # (N, row, column, row, column)
    assert (bias[:, 1, 2, 1, 2] == 0).all() and (bias <= 0).all()
    assert torch.allclose(bias[:, 0, 0, 2, 0], 4 * bias[:, 0, 0, 0, 1])  # squared distance, rows as columns
    assert (bias[0, 0, 0, 0, 1] < bias[-1, 0, 0, 0, 1]).all()  # the first head is the most local


def test_a_change_of_a_modality_far_away_changes_a_local_expert_less():
    torch.manual_seed(3)
    config = replace(CONFIG, query="patch", is_local=True)
    expert, z, tokens = ModalityExpert(config), torch.randn(1, 64, 16), torch.randn(1, 64, 16)
    temperature, grid = torch.ones(1), (8, 8)
    before = expert(z, tokens, temperature, grid)[0, 0]
    changes = []
    for place in (0, 63):
        changed = tokens.clone()
        changed[0, place] = torch.randn(16)
        changes.append(float((expert(z, changed, temperature, grid)[0, 0] - before).detach().abs().max()))
    assert changes[0] > 3 * changes[1]


def test_a_local_expert_without_a_grid_says_what_it_needs():
    expert = ModalityExpert(replace(CONFIG, is_local=True))
    with pytest.raises(ValueError, match="needs the grid"):
        expert(torch.randn(1, 9, 16), torch.randn(1, 9, 16), torch.ones(1))


def test_the_fusion_tells_local_experts_the_grid_of_each_modality():
    config = replace(CONFIG, query="patch", is_local=True)
    fusion, z, modalities, weights = fusion_and_inputs(config)
    fused = fusion.fuse(fusion.prepare(z, modalities, weights), temperatures(0.7))
    assert fused.shape == z.shape
    fused.square().mean().backward()
    assert all(expert.slope_logits.grad.abs().sum() > 0 for expert in fusion.experts.values())
