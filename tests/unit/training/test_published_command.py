"""The command of fusion training: what it refuses, and how it says so."""

import shutil
from dataclasses import replace

import pytest

from tests.unit.training.conftest import RECIPE
from training.published import PROFILES
from training.published.__main__ import main


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"--models-dir": "nowhere"}, "m3esr models pull quality"),
        ({"--pairs": "nowhere"}, "make them with: python -m training.pairs"),
        ({"--pairs": None}, "--pairs must be given"),
        ({"--captions": "nowhere.json"}, "cannot be read as JSON"),
        ({"--batch-size": "3"}, "cannot make a total batch of 16"),
        ({"--num-steps": "0"}, "--num-steps must be above 0"),
        ({"--weights": "dit4sr_x"}, "'dit4sr_x' are unknown"),
        ({"--profile": "fidelity", "--weights": "dit4sr_r1"}, "'dit4sr_r1' are unknown"),
        ({"--profile": "fidelity", "--models-dir": "nowhere"}, "m3esr models pull fidelity"),
        ({"--modalities": "edge,smell"}, "unknown modality smell"),
        ({"--device": "tpu"}, "'tpu' is unknown"),
    ],
)
def test_wrong_input_is_told_in_one_line(root, pairs, features, tmp_path, capsys, changes, reason):
    given = {"--models-dir": root, "--pairs": pairs, "--features": features / "quality", "--out": tmp_path / "out"}
    given |= {"--device": "cpu"} | changes
    assert main([str(word) for pair in given.items() if pair[1] is not None for word in pair]) == 2
    told = capsys.readouterr()
    assert reason in told.err and told.err.count("\n") == 1 and told.out == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_or_of_other_features_is_refused(start):
    start()
    with pytest.raises(ValueError, match="a run with other learning_rate: use another --out"):
        start(replace(RECIPE, learning_rate=1.0))
    with pytest.raises(ValueError, match="features of other modalities: use another --features"):
        start(replace(RECIPE, modalities=("edge",)), out="edge")


def test_what_the_features_need_is_told_when_it_is_missing(start, root, tmp_path):
    shutil.copytree(root, tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub" / "xinntao")
    with pytest.raises(FileNotFoundError, match="m3esr models pull coarse"):
        start(models_dir=tmp_path / "hub", features=tmp_path / "features")


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_costs_on_a_cpu_are_called_a_dry_run(profile, capsys):
    assert main(["--measure", "--profile", profile, "--device", "cpu"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("Dry run") and [line.split()[0] for line in told[2:]] == ["off", "on"]
    assert all(line.split()[-1] == "-" for line in told[2:])
