"""The audit: gains are true derivatives, damage is damage, and the whole runs on a tiny network."""

import json

import numpy as np
import pytest
import torch

from evaluation import corruption
from evaluation.audit import audit, audit_tables, common_side, patch_errors, read_pair
from evaluation.corruption import BLIND, CorruptionMeter, corrupt
from evaluation.data import Pair
from evaluation.errors import EvaluationError
from evaluation.gains import GainMeter
from evaluation.production import write_png
from evaluation.report import to_json
from models.configs import VISUAL_MODALITIES
from models.requests import UpscaleOptions
from tests.unit.models.tiny import tiny_upscaler

OPTIONS = UpscaleOptions(num_steps=2)


def photograph(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side, 3), dtype=np.float32)


def loud_upscaler():
    """Experts that say enough to be heard above the rounding of float32."""
    upscaler = tiny_upscaler()
    for expert in upscaler.network.fusion.experts.values():
        expert.to_output.weight.mul_(100)
    return upscaler


@pytest.fixture(scope="module")
def meter() -> GainMeter:
    return GainMeter(loud_upscaler(), OPTIONS)


@pytest.fixture(scope="module")
def scene(meter):
    return meter.see(photograph(0, 52), photograph(1, 208))  # 13 tokens a side: more than one tile


def test_the_gain_of_a_patch_is_minus_the_slope_of_the_loss(meter, scene):
    mean_weights = {"segmentation": 0.3, "depth": 0.5, "edge": 0.6, "dino": 0.4}
    measured = meter.measure(scene, mean_weights)
    assert measured.gains.shape == measured.weights.shape == (4, 169)
    static = {name: torch.full((1, 13, 13), value) for name, value in mean_weights.items()}
    for m, name in enumerate(VISUAL_MODALITIES):
        moved = [{**static, name: static[name] + step} for step in (0.02, -0.02)]
        with torch.inference_mode():
            slope = (meter.loss(scene, moved[0]) - meter.loss(scene, moved[1])) / 0.04
        assert measured.gains[m].sum() == pytest.approx(-float(slope), rel=0.05, abs=1e-8), name
    with torch.inference_mode():
        assert measured.static_loss == pytest.approx(float(meter.loss(scene, static)))
        assert measured.dynamic_loss == pytest.approx(float(meter.loss(scene, None)))


def test_the_restored_image_is_the_pipelines(meter):
    lr_image = photograph(2, 48)
    scene = meter.see(lr_image, photograph(3, 192))
    options = UpscaleOptions(num_steps=2, color_correction="none")
    sr_image = meter.upscaler.upscale(lr_image, options).sr_image
    with torch.inference_mode():
        restored = meter.upscaler.finish(meter.restore(scene, None), lr_image, options)
    assert np.allclose(restored, sr_image, atol=1e-6)


def test_the_coarse_image_alone_has_nothing_to_audit():
    with pytest.raises(ValueError, match="preset fast runs no experts"):
        GainMeter(tiny_upscaler(), UpscaleOptions(preset="fast"))


@pytest.mark.parametrize("name", ["depth", "dino"])
def test_shuffling_keeps_every_token_and_moves_most(name):
    side = 4 if name == "dino" else 64
    modality = torch.rand(1, 3, side, side)
    mixed = corrupt(modality, name, "shuffle", torch.Generator().manual_seed(0))
    assert mixed.shape == modality.shape and not torch.equal(mixed, modality)
    assert torch.equal(mixed.flatten().sort().values, modality.flatten().sort().values)
    if name == "depth":  # tokens of 16 x 16 px stay whole
        tokens = {tuple(t.flatten().tolist()) for t in modality[0].unfold(1, 16, 16).unfold(2, 16, 16).flatten(1, 2)[0]}
        found = {tuple(t.flatten().tolist()) for t in mixed[0].unfold(1, 16, 16).unfold(2, 16, 16).flatten(1, 2)[0]}
        assert tokens == found


def test_noise_is_another_picture_of_the_same_range():
    modality = torch.rand(1, 3, 32, 32)
    noisy = corrupt(modality, "edge", "noise", torch.Generator().manual_seed(0))
    assert noisy.min() >= 0 and noisy.max() <= 1 and (noisy - modality).abs().mean() > 0.1


def test_the_papers_router_cannot_see_damage_and_one_that_can_is_seen(meter, scene, monkeypatch):
    blind = CorruptionMeter(meter)
    blind.add(scene)
    found = blind.summary()
    assert found["is_blind"] and len(found["rows"]) == 8
    assert all(row["mean_weight"] == row["mean_weight_corrupted"] for row in found["rows"])
    assert any(row["loss_change"] != 0 for row in found["rows"])

    def route(scene):
        return {name: torch.full((1, 13, 13), 1 / (1 + float(m.std()))) for name, m in scene.modalities.items()}

    monkeypatch.setattr(meter, "route", route)
    monkeypatch.setattr(corruption, "KINDS", ("noise",))
    seeing = CorruptionMeter(meter)
    seeing.add(scene)
    assert not seeing.summary()["is_blind"]


def test_patch_errors_are_means_over_16_px_and_rgb():
    error = np.zeros((32, 48, 3), np.float32)
    error[:16, 16:32, 0] = 0.3
    assert patch_errors(error, np.zeros_like(error)) == pytest.approx(np.array([[0, 0.1, 0], [0, 0, 0]]))


@pytest.fixture
def pairs(tmp_path) -> list[Pair]:
    made = []
    for k, (height, width) in enumerate([(40, 36), (36, 45), (36, 36)]):
        pair = Pair(f"p{k}", tmp_path / f"lr{k}.png", tmp_path / f"hr{k}.png")
        rng = np.random.default_rng(k)
        write_png(pair.lr, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        write_png(pair.hr, rng.integers(0, 256, (4 * height, 4 * width, 3), dtype=np.uint8))
        made.append(pair)
    return made


def test_the_whole_audit_is_json_and_four_tables(pairs):
    steps = []
    found = audit(tiny_upscaler(), pairs, OPTIONS, lambda *step: steps.append(step))
    told = json.loads(to_json(found))
    assert (told["images"], told["lr_side"], told["num_steps"]) == (3, 36, 2)
    assert steps == [(k, 6) for k in range(1, 7)]
    gamma = told["gamma"]
    assert gamma["total"]["gamma"] == pytest.approx(sum(row["gamma"] for row in gamma["modalities"].values()))
    assert gamma["total"]["low"] <= gamma["total"]["high"]
    assert told["uncertainty"]["uncertainty"]["risk_curve"][-1] == pytest.approx(told["uncertainty"]["mean_error"])
    first, second, fourth, third = audit_tables(found, "here")
    assert [row[0] for row in fourth.rows] == list(VISUAL_MODALITIES)
    assert -1 <= told["agreement"]["dino"]["rank_correlation"] <= 1
    assert [row[0] for row in first.rows] == [*VISUAL_MODALITIES, "all"]
    assert second.notes == (BLIND,) and len(second.rows) == 8
    assert [row[0] for row in third.rows] == ["uncertainty"]


def test_the_first_order_gain_predicts_the_measured_one(pairs):
    """Where weights move little the theorem's expansion is exact: what routing changed is what the gains foretold."""
    upscaler = loud_upscaler()
    upscaler.network.router.to_weights.weight.mul_(0.2)
    gamma = audit(upscaler, pairs, OPTIONS)["gamma"]
    assert gamma["first_order_gain"] == pytest.approx(gamma["measured_gain"], rel=0.2, abs=1e-10)


def test_pairs_that_do_not_fit_are_refused(pairs, tmp_path):
    with pytest.raises(EvaluationError, match="needs 3 pairs or more, not 2"):
        audit(tiny_upscaler(), pairs[:2], OPTIONS)
    assert common_side(pairs) == 36
    lr, hr = read_pair(pairs[0], 36)
    assert (lr.shape, hr.shape) == ((36, 36, 3), (144, 144, 3))
    write_png(pairs[1].hr, np.zeros((36, 36, 3), np.uint8))
    with pytest.raises(EvaluationError, match="p1: HR must be 4 times LR"):
        common_side(pairs)
