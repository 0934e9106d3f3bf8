"""Pairs are written once, resumed, split without leaks, and sampled with both sides aligned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.degradation import clean_x4, degrade
from training.pairs import PairDataset, choose_held_out, draw_path, turn, write_pairs

SIZE = 64


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five smooth photographs, three of them crops of one scene, one larger than SIZE, and one too small."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name, width, height in [
        ("a_0", SIZE, SIZE),
        ("a_1", SIZE, SIZE),
        ("a_2", SIZE, SIZE),
        ("b_0", SIZE, SIZE),
        ("c_0", SIZE + 20, SIZE + 8),
        ("small", SIZE, SIZE - 1),
    ]:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no photograph")
    return folder


@pytest.fixture(scope="module")
def pairs(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clean draws, so that the low-resolution side is known exactly."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(photographs, folder, num_draws=2, seed=5, num_held_out=1, recipe="clean", size=SIZE)
    return folder


def test_files_hold_centre_crops_and_their_degraded_forms(photographs: Path, pairs: Path) -> None:
    index = json.loads((pairs / "index.json").read_text())
    hr, lr = np.load(pairs / "hr.npy"), np.load(draw_path(pairs, 1))
    assert index["names"] == ["a_0.png", "a_1.png", "a_2.png", "b_0.png", "c_0.png"]
    assert (hr.shape, hr.dtype) == ((5, SIZE, SIZE, 3), np.uint8)
    assert (lr.shape, lr.dtype) == ((5, SIZE // 4, SIZE // 4, 3), np.uint8)
    with Image.open(photographs / "c_0.png") as image:
        np.testing.assert_array_equal(hr[4], np.asarray(image)[4 : 4 + SIZE, 10 : 10 + SIZE])
    expected = degrade(hr[4].astype(np.float32) / 255, clean_x4(), np.random.default_rng((5, 1, 4)))
    np.testing.assert_array_equal(lr[4], np.rint(expected * 255))


def test_too_small_photograph_is_named(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(photographs, tmp_path, num_draws=0, seed=0, size=SIZE)
    assert "skipped small.png: 64 x 63" in capsys.readouterr().out


def test_second_call_keeps_what_is_there_and_adds_draws(photographs: Path, tmp_path: Path) -> None:
    def write(num_draws: int) -> None:
        write_pairs(photographs, tmp_path, num_draws=num_draws, seed=1, num_held_out=1, size=SIZE)

    write(1)
    before = draw_path(tmp_path, 0).stat().st_mtime_ns
    dataset = PairDataset(tmp_path)
    (tmp_path / "lr_001.part").write_bytes(b"left by an interrupted run")
    write(2)
    assert draw_path(tmp_path, 0).stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.part"))
    assert not np.array_equal(np.load(draw_path(tmp_path, 0)), np.load(draw_path(tmp_path, 1)))
    # A trainer that opened the folder earlier learns of more draws when it opens it again.
    assert (dataset.num_draws, PairDataset(tmp_path).num_draws) == (1, 2)


def test_other_seed_in_the_same_folder_is_refused(photographs: Path, pairs: Path) -> None:
    with pytest.raises(ValueError, match="seed"):
        write_pairs(photographs, pairs, num_draws=2, seed=6, num_held_out=1, recipe="clean", size=SIZE)


def test_open_dataset_picks_up_a_draw_that_is_finished_later(pairs: Path, tmp_path: Path) -> None:
    for path in pairs.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    os.rename(draw_path(tmp_path, 1), tmp_path / "lr_001.part")
    dataset = PairDataset(tmp_path)
    assert dataset.num_draws == 1
    os.rename(tmp_path / "lr_001.part", draw_path(tmp_path, 1))
    dataset.sample_batch(np.random.default_rng(0), 1, 8)
    assert dataset.num_draws == 2


def test_folder_without_a_finished_draw_is_refused(photographs: Path, tmp_path: Path) -> None:
    write_pairs(photographs, tmp_path, num_draws=0, seed=0, size=SIZE)
    with pytest.raises(FileNotFoundError, match="no finished draw"):
        PairDataset(tmp_path)


def test_held_out_photographs_share_no_scene_with_training() -> None:
    names = [f"a_{i}.jpg" for i in range(6)] + ["b_0.jpg", "b_1.jpg", "c_0.jpg", "d_0.jpg", "alone.jpg"]
    assert choose_held_out(names, 3, seed=0) == [8, 9, 10]
    assert choose_held_out(names, 4, seed=0) == [6, 7, 8, 9, 10]
    assert choose_held_out(names, 0, seed=0) == []


def test_held_out_choice_depends_on_the_seed_alone() -> None:
    names = [f"{i}_0.jpg" for i in range(30)]
    choices = {tuple(choose_held_out(names, 5, seed)) for seed in (0, 0, 1)}
    assert len(choices) == 2


def test_holding_out_everything_is_refused(pairs: Path, tmp_path: Path) -> None:
    for path in pairs.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = json.loads((tmp_path / "index.json").read_text())
    index["held_out"] = list(range(5))
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="held out"):
        PairDataset(tmp_path)


def test_batch_has_the_agreed_shapes_and_range(pairs: Path) -> None:
    lr_image, hr_image = PairDataset(pairs).sample_batch(np.random.default_rng(0), 3, 8)
    assert lr_image.shape == (3, 3, 8, 8) and hr_image.shape == (3, 3, 32, 32)
    assert lr_image.dtype == hr_image.dtype == torch.float32
    assert hr_image.min() >= 0 and 0.5 < hr_image.max() <= 1


def test_both_sides_of_a_pair_show_the_same_crop_and_turn(pairs: Path) -> None:
    dataset = PairDataset(pairs, flat_probability=0.0)
    lr_image, hr_image = dataset.sample_batch(np.random.default_rng(0), 64, 12)
    # The photographs are smooth, so averaging 4 x 4 pixels gives nearly the clean reduction.
    reduced = torch.nn.functional.avg_pool2d(hr_image, 4)
    error = (reduced - lr_image)[:, :, 2:-2, 2:-2].abs().amax(dim=(1, 2, 3))
    assert error.max() < 0.02


def test_all_eight_turns_differ() -> None:
    image = np.arange(4 * 4 * 3).reshape(4, 4, 3)
    assert len({turn(image, k, flip).tobytes() for k in range(4) for flip in (False, True)}) == 8


def test_held_out_photographs_are_never_sampled(pairs: Path) -> None:
    dataset = PairDataset(pairs, flat_probability=0.0)
    [(lr_image, hr_image)] = dataset.holdout()
    assert lr_image.shape == (3, SIZE // 4, SIZE // 4) and hr_image.shape == (3, SIZE, SIZE)
    _, sampled = dataset.sample_batch(np.random.default_rng(0), 60, SIZE // 4)
    # Turning an image keeps its sorted values.
    values = {tuple(np.sort(image.flatten().numpy())[::97]) for image in sampled}
    assert len(values) == 4
    assert tuple(np.sort(hr_image.flatten().numpy())[::97]) not in values


def test_flat_pairs_have_one_colour_on_both_sides(pairs: Path) -> None:
    lr_image, hr_image = PairDataset(pairs, flat_probability=1.0).sample_batch(np.random.default_rng(0), 4, 6)
    colour = lr_image[:, :, :1, :1]
    assert torch.equal(lr_image, colour.expand_as(lr_image))
    assert torch.equal(hr_image, colour.expand_as(hr_image))
    assert len(colour.flatten().unique()) > 6


def test_command_line_with_two_workers_writes_the_same_pairs(photographs: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    write_pairs(photographs, alone, num_draws=1, seed=0, num_held_out=1, size=SIZE)
    arguments = ["--photographs", photographs, "--out", shared, "--draws", 1, "--seed", 0, "--holdout", 1]
    command = [sys.executable, "-m", "training.pairs", *map(str, arguments), "--size", str(SIZE)]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=True, timeout=240)
    assert "pairs 5/5" in done.stdout
    np.testing.assert_array_equal(np.load(draw_path(alone, 0)), np.load(draw_path(shared, 0)))
    assert (alone / "index.json").read_text() == (shared / "index.json").read_text()
