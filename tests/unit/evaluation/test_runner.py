"""A run keeps what it has done, and never mixes pictures of two methods."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.data import Pair, find_sets
from evaluation.errors import EvaluationError
from evaluation.methods import Machine, Method, load_method
from evaluation.production import produce, write_png
from evaluation.runner import Run
from evaluation.scoring import Scorer

BICUBIC = Method(name="bicubic", kind="bicubic")


def photograph(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def data(tmp_path) -> Path:
    for folder, side in (("hr", 64), ("lr_real", 16), ("lr_bicubic", 16)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for k in range(4):
            write_png(tmp_path / "data" / folder / f"p{k}.png", photograph(k, side))
    return tmp_path / "data"


@pytest.fixture
def pairs(data) -> list[Pair]:
    return find_sets(data)["lr_real"]


class Maker:
    """Makes outputs in this process and remembers which; dies after `limit`."""

    def __init__(self, limit: int = 100) -> None:
        self.limit, self.made = limit, []

    def __call__(self, method, pairs, folder, threads, on_done) -> None:
        upscale = load_method(method)
        for pair in pairs:
            if len(self.made) == self.limit:
                raise EvaluationError("cut off")
            write_png(folder / f"{pair.stem}.png", upscale(np.asarray(photograph(0, 16))))
            self.made.append(pair.stem)
            on_done(pair.stem, 0.5 + len(self.made), 100.0 + len(self.made))


def test_sets_are_the_lr_folders_and_a_limit_spreads_evenly(data):
    assert list(find_sets(data)) == ["lr_bicubic", "lr_real"]
    assert [pair.stem for pair in find_sets(data, ("lr_real",), 2)["lr_real"]] == ["p0", "p3"]
    with pytest.raises(EvaluationError, match="no folder lr_x/; it has lr_bicubic, lr_real"):
        find_sets(data, ("lr_x",))
    with pytest.raises(EvaluationError, match="has no folder hr/"):
        find_sets(data / "hr")


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path, pairs):
    first = Maker(limit=2)
    with pytest.raises(EvaluationError, match="cut off"):
        Run(tmp_path / "out", Scorer(), make=first).evaluate("lr_real", pairs, BICUBIC)
    second, steps = Maker(), []
    run = Run(tmp_path / "out", Scorer(), on_step=lambda *step: steps.append(step), make=second)
    result = run.evaluate("lr_real", pairs, BICUBIC)
    assert (first.made, second.made) == (["p0", "p1"], ["p2", "p3"])
    assert set(result.rows) == {"p0", "p1", "p2", "p3"}
    assert result.mean["seconds"] == pytest.approx(2.0)  # the median of 1.5, 2.5, 1.5, 2.5
    assert result.mean["memory_mb"] == 102.0
    assert [step[2] for step in steps] == [3, 4, 5, 6, 7, 8] and steps[-1][3] == 8
    third = Maker()
    again = replace(run, make=third).evaluate("lr_real", pairs, BICUBIC)
    assert third.made == [] and again.mean == result.mean


def test_pictures_of_other_weights_are_not_reused(tmp_path, pairs):
    run = Run(tmp_path / "out", Scorer(), make=Maker())
    run.evaluate("lr_real", pairs, BICUBIC)
    with pytest.raises(EvaluationError, match="made with other weights or options: take another --out"):
        run.evaluate("lr_real", pairs, replace(BICUBIC, machine=Machine(dtype="bf16")))


def test_an_image_that_changed_is_made_again(tmp_path, pairs):
    maker = Maker()
    run = Run(tmp_path / "out", Scorer(), make=maker)
    run.evaluate("lr_real", pairs, BICUBIC)
    write_png(pairs[1].lr, photograph(99, 16))
    run.evaluate("lr_real", pairs, BICUBIC)
    assert maker.made == ["p0", "p1", "p2", "p3", "p1"]


def test_a_folder_of_outputs_is_scored_and_scored_again_when_it_changes(tmp_path, pairs):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    method = Method(name="theirs", kind="folder", path=theirs)
    run = Run(tmp_path / "out", Scorer())
    with pytest.raises(EvaluationError, match="has no image for 4 of 4: p0"):
        run.evaluate("lr_real", pairs, method)
    for pair in pairs:
        write_png(theirs / f"{pair.stem}.png", photograph(50))
    first = run.evaluate("lr_real", pairs, method)
    write_png(theirs / "p2.png", photograph(2))  # the HR image itself
    second = run.evaluate("lr_real", pairs, method)
    assert "seconds" not in first.mean
    assert second.rows["p2"]["ssim_y"] == pytest.approx(1.0) and first.rows["p2"]["ssim_y"] < 0.5
    assert second.rows["p1"] == first.rows["p1"]


def test_another_size_than_the_hr_images_is_refused(tmp_path, pairs):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for pair in pairs:
        write_png(theirs / f"{pair.stem}.png", photograph(0, 32))
    with pytest.raises(EvaluationError, match="p0: SR is 32x32, HR is 64x64"):
        Run(tmp_path / "out", Scorer()).evaluate("x", pairs, Method(name="t", kind="folder", path=theirs))


def test_outputs_are_made_in_a_process_of_their_own(tmp_path, pairs):
    done = []
    produce(BICUBIC, pairs[:2], tmp_path, 1, lambda *facts: done.append(facts))
    assert [facts[0] for facts in done] == ["p0", "p1"]
    assert all(facts[1] > 0 and 10 < facts[2] < 10_000 for facts in done)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["p0.png", "p1.png"]


def test_what_a_method_cannot_do_is_told_in_its_name(tmp_path, pairs):
    broken = tmp_path / "b.onnx"
    broken.write_bytes(b"x")
    method = Method(name="broken", kind="onnx", path=broken)
    with pytest.raises(EvaluationError, match=r"broken: .*b\.onnx cannot be loaded by onnxruntime"):
        produce(method, pairs, tmp_path, 1, lambda *_: None)
