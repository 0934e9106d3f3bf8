"""The fit recovers a law that it can express, and is shipped only where it is better."""

import json

import numpy as np
import pytest
import torch

from tests.unit.models.tiny import tiny_upscaler
from training import calibrate
from training.calibrate import Patches, choose, collect, compare, fit, is_better


def patches(seed: int, count: int = 4000) -> Patches:
    """Errors that grow with U and with the LR gradient, and shrink with the noise; noise of 20 % on top."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    law = 0.5 * features[:, 0] + 0.4 * features[:, 2] - 0.3 * features[:, 3] + 0.1 * features[:, 2] ** 2 - 4
    errors = (law + 0.2 * torch.randn(count, generator=generator, dtype=torch.float64)).exp()
    return Patches(features, errors, features[:, 0].exp())


def test_the_fit_sorts_held_out_patches_better_and_predicts_their_mean():
    quality = compare(fit(patches(0), "sha"), patches(1))
    ours, raw = quality["uncertainty"], quality["uncertainty_raw"]
    assert ours["rank_correlation"] > 0.9 > 0.75 > raw["rank_correlation"]
    assert ours["risk_area"] < raw["risk_area"]
    assert abs(ours["bias"]) < 0.05
    assert is_better(quality)


@pytest.mark.parametrize(("rank", "area"), [(0.4, 0.1), (0.6, 0.3), (0.5, 0.2)])
def test_one_of_the_two_is_not_enough(rank, area):
    raw = {"rank_correlation": 0.5, "risk_area": 0.2}
    assert not is_better({"uncertainty": {"rank_correlation": rank, "risk_area": area}, "uncertainty_raw": raw})


def test_what_is_collected_is_a_row_per_patch():
    rng = np.random.default_rng(0)
    images = [(rng.random((16, 20, 3), dtype=np.float32), rng.random((64, 80, 3), dtype=np.float32))]
    found = collect(tiny_upscaler(), images)
    assert found.features.shape == (20, 6) and found.errors.shape == found.uncertainty.shape == (20,)
    assert torch.isfinite(found.features).all() and (found.errors > 0).all()


def test_training_photographs_are_spread_and_never_held_out(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"names": list("abcdefgh"), "held_out": [3, 0]}))
    training, held_out = choose(tmp_path, 3)
    assert held_out == [0, 3] and training == [1, 4, 7]
    assert choose(tmp_path, 100)[0] == [1, 2, 4, 5, 6, 7]


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "hr.npy", rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
    np.save(tmp_path / "lr_000.npy", rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    (tmp_path / "index.json").write_text(json.dumps({"names": list("abcd"), "held_out": [3]}))
    return tmp_path


@pytest.mark.parametrize("better", [True, False])
def test_the_file_is_written_only_if_it_is_better(monkeypatch, pairs, better, capsys):
    monkeypatch.setattr(calibrate.Upscaler, "load", lambda *_, **__: tiny_upscaler())
    monkeypatch.setattr(calibrate, "is_better", lambda _: better)
    out = pairs / "uncertainty.json"
    monkeypatch.setattr("sys.argv", ["calibrate", "--pairs", str(pairs), "--out", str(out)])
    if better:
        calibrate.main()
        assert json.loads(out.read_text())["num_patches"] == 3 * 16
    else:
        with pytest.raises(SystemExit, match="nothing written"):
            calibrate.main()
        assert not out.exists()
    assert "uncertainty_raw" in capsys.readouterr().out
