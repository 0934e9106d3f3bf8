"""The command that proves `quality` at full size: its dry run, its arithmetic, and that no section stops another."""

import json
import math
import time
from dataclasses import replace

import pytest
import torch

from evaluation import memory, speed
from evaluation.full_size import __main__ as command
from evaluation.full_size import profile, setting, training_cost
from evaluation.full_size.numerics import (
    against_the_cpu,
    answers,
    in_precision,
    random_denoiser,
    random_tokens,
    relative_error,
    rounded_inputs,
)
from evaluation.full_size.profile import StageMeter
from evaluation.full_size.record import Deadline, OutOfTimeError, Record, Row, Section
from evaluation.full_size.setting import TINY, Setting, Size
from models.backbones.stock import StockSizes, stock_clip, stock_t5, stock_vae
from models.requests import ProgressEvent

CPU = torch.device("cpu")
DRY = Setting(CPU, TINY)


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "full_size.json", {"device": "none"}, lambda line: None)


def one_row(name):
    return lambda deadline: (row for row in [Row(name, "s", 2.0, 1.0)])


def in_a_minute():
    return time.monotonic() + 60


def test_the_dry_run_has_every_section_and_says_that_it_is_dry(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setting, "TINY", replace(TINY, large=24))  # a large picture of several tiles takes seconds
    assert command.main(["--out", str(tmp_path), "--seconds", "250"]) == 0
    found = json.loads((tmp_path / "full_size.json").read_text())
    assert list(found["sections"]) == list(command.NAMES)
    assert all(section["rows"] for section in found["sections"].values())
    assert command.DRY in found["about"] and command.DRY in capsys.readouterr().out
    names = [row["name"] for row in found["sections"]["profile"]["rows"]]
    assert "16 -> 64 px, fused: 40 steps" in names and "16 -> 64 px, alone: 40 steps" in names


def test_a_section_that_fails_does_not_stop_the_next(record):
    def fails(deadline):
        yield Row("before", "s", 1.0)
        raise RuntimeError("first\nsecond")

    sections = [Section("fails", fails, budget=9), Section("works", one_row("after"), budget=9)]
    assert not record.run(sections, in_a_minute(), lambda: None)
    found = json.loads(record.path.read_text())["sections"]
    assert [row["name"] for row in found["fails"]["rows"]] == ["before"]
    assert found["fails"]["error"].startswith("RuntimeError at test_full_size.py:")
    assert found["fails"]["error"].endswith(": first")
    assert [row["name"] for row in found["works"]["rows"]] == ["after"]


def test_a_section_that_has_spent_its_time_keeps_what_it_found(record):
    def takes_long(deadline):
        time.sleep(0.02)
        yield from (Row("a", "s", 1.0), Row("b", "s", 1.0))

    sections = [Section("slow", takes_long, budget=0.01)]
    assert not record.run([*sections, Section("works", one_row("c"), budget=9)], in_a_minute(), lambda: None)
    assert [row["name"] for row in record.sections["slow"]["rows"]] == ["a"]
    assert "OutOfTimeError" in record.sections["slow"]["error"]
    assert "error" not in record.sections["works"]


def test_nothing_is_begun_with_too_little_time(record):
    record.run([Section("long", one_row("a"), budget=90, least=80)], in_a_minute(), lambda: None)
    assert record.sections["long"]["rows"] == []
    assert "not begun" in record.sections["long"]["error"]


def test_a_row_tells_measured_and_computed_side_by_side():
    row = Row("memory", "GiB", 5.5, 5.0)
    assert row.difference == pytest.approx(0.1)
    assert row.line().split()[1:] == ["GiB", "5.500", "5.000", "+10.0%"]
    unmeasured = Row("memory", "GiB", math.nan, 5.0)
    assert unmeasured.as_json()["measured"] is None and unmeasured.as_json()["computed"] == 5.0
    assert unmeasured.line().split()[1:] == ["GiB", "-", "5.000", "-"]


def test_the_error_of_half_precision_is_that_of_the_same_weights():
    network = random_denoiser(TINY.denoiser, CPU)
    inputs = rounded_inputs(TINY.denoiser, 2, DRY)
    tokens = random_tokens(network, inputs)
    for parameter in network.parameters():
        assert torch.equal(parameter, parameter.bfloat16().float())
        assert parameter.abs().max() > 0  # a gate at zero would hide what lies behind it
    with torch.no_grad():
        exact = answers(network, inputs, tokens)["fused"]
        errors = [
            relative_error(answers(in_precision(network, dtype), inputs, tokens)["fused"], exact)
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        ]
    assert errors[0] < 1e-5 < errors[1] < 4e-3 < errors[2] < 3e-2


def test_one_device_agrees_with_itself(monkeypatch):
    monkeypatch.setattr(Setting, "is_real", True)  # on a CPU there is nothing to compare, and no row
    rows = list(against_the_cpu(DRY))
    assert len(rows) == 2
    assert all(row.measured < 1e-5 and "2 layers" in row.name for row in rows)


def test_what_is_not_finite_has_no_error():
    assert math.isnan(relative_error(torch.tensor([1.0, math.inf]), torch.ones(2)))
    assert relative_error(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])) == pytest.approx(1 / math.sqrt(5))


def test_a_picture_is_cut_short_when_its_time_is_spent():
    meter = StageMeter(CPU, Deadline(time.monotonic() - 1))
    meter(ProgressEvent("encoding", 0, 40, 0.1))  # only denoising can be cut short: it alone can be extrapolated
    with pytest.raises(OutOfTimeError):
        meter(ProgressEvent("denoising", 7, 40, 0.2))
    assert meter.num_steps == 7 and "encoding" in meter.seconds


def test_the_full_size_is_that_of_the_other_commands():
    assert replace(Size().denoiser, fused=False) == memory.SD35
    assert replace(memory.SD35, pos_embed_max_size=384) == speed.FULL


def test_computed_weights_are_those_of_the_memory_table():
    parts = {part.name: part.num_bytes for part in memory.quality_parts(fused=True)}
    computed = Setting(torch.device("cuda"), Size()).computed_weights()
    assert computed == {name: count for name, count in parts.items() if name != "extractors"}
    assert set(profile.makers(DRY, {})) == set(computed) == set(DRY.computed_weights())


def test_the_stock_networks_have_the_published_sizes():
    sizes = StockSizes()
    builds = {
        "VAE": lambda: stock_vae(sizes),
        "CLIP-L": lambda: stock_clip(*sizes.clip_l),
        "CLIP-bigG": lambda: stock_clip(*sizes.clip_big_g),
        "T5-XXL": lambda: stock_t5(*sizes.t5),
    }
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in build().parameters()) for name, build in builds.items()}
    assert counts == {name: memory.STOCK[name][0] for name in counts}


def test_the_computed_memory_of_training_is_the_documents():
    assert round(training_cost.computed_bytes(Setting(torch.device("cuda"), Size())) / 2**30, 1) == 12.0
