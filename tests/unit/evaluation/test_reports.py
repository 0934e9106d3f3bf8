"""Tables, sheets, the paper's numbers, ablation rows, and the bench."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from evaluation.ablations import masked_rows, measure_mean_weights
from evaluation.bench import Bench, bench_table, make_lr_image
from evaluation.data import Pair
from evaluation.errors import EvaluationError
from evaluation.evaluate import Evaluation, parse_trained_without
from evaluation.methods import Method
from evaluation.paper_tables import NO_SIX, NOT_TRAINED, TABLE_1, table_1, table_3
from evaluation.production import write_png
from evaluation.report import compare, results_json, to_json
from evaluation.runner import MethodResult, Run
from evaluation.scoring import Scorer
from evaluation.sheets import GAP, LABEL_HEIGHT, write_sheets
from models.requests import UpscaleOptions
from tests.unit.models.tiny import tiny_upscaler


def result(name: str, outputs: dict | None = None, **scores: float) -> MethodResult:
    return MethodResult(Method(name=name, kind="bicubic"), {"p": scores}, scores, outputs or {})


def test_the_best_of_each_column_is_bold_in_its_own_direction():
    table = compare("t", [result("a", psnr_y=20.0, gmsd=0.1), result("b", psnr_y=21.0, gmsd=0.2, seconds=1.0)])
    assert table.header == ("method", "PSNR-Y", "GMSD", "s per image")
    assert table.rows == (("a", "20.00", "0.100", ""), ("b", "21.00", "0.200", "1.000"))
    assert table.bold == {(1, 1), (0, 2), (1, 3)}
    assert "| b | **21.00** | 0.200 | **1.000** |" in table.markdown()


def test_a_narrow_terminal_loses_no_digit():
    stream = io.StringIO()
    compare("t", [result(n * 30, psnr_y=20.0, niqe=4.5) for n in "ab"]).show(Console(file=stream, width=20))
    assert "a" * 30 in stream.getvalue() and "20.00" in stream.getvalue()


def test_json_says_null_for_what_is_not_finite():
    told = json.loads(to_json(results_json({"lr": [result("a", psnr_y=math.inf, niqe=math.nan)]}, {"seed": 1})))
    assert told["sets"]["lr"]["a"]["mean"] == {"psnr_y": None, "niqe": None}
    assert told["seed"] == 1 and told["machine"]["threads"] >= 1


def test_sheets_show_every_panel_whole_under_its_name(tmp_path):
    colours = {"lr": 10, "hr": 200, "ours": 120}
    for name, value in colours.items():
        write_png(tmp_path / f"{name}.png", np.full((8, 8, 3) if name == "lr" else (32, 32, 3), value, np.uint8))
    pair = Pair("p", tmp_path / "lr.png", tmp_path / "hr.png")
    shown = result("ours", {"p": tmp_path / "ours.png"}, psnr_y=20.0)
    [path] = write_sheets(tmp_path / "sheets", [pair], [shown], 5)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (32 + LABEL_HEIGHT, 3 * 32 + 2 * GAP, 3)
    for k, value in enumerate((10, 120, 200)):
        left = k * (32 + GAP)
        assert (sheet[LABEL_HEIGHT:, left : left + 32] == value).all()
        assert sheet[:LABEL_HEIGHT, left : left + 32].min() < 128  # a label


def test_table_1_says_where_each_row_was_measured():
    table = table_1([result("compact", psnr_y=23.0, lpips_squeeze=0.3)], "val (60), this run")
    rows = {row[0]: row for row in table.rows}
    assert rows["M3ESR, Ours-Q"][1:4] == ("DIV2K-val, the paper", "0.2729", "4.6899")
    assert rows["compact"][1] == "val (60), this run" and "0.3000" in rows["compact"]
    assert len(TABLE_1) == 9 and table.notes == (NO_SIX,)
    assert table_1([result("compact", lpips=0.2)], "x").notes == ()


def test_table_3_tells_masked_from_trained():
    ours = Method(name="compact", kind="profile", profile="compact")
    masked = {row: result(row, lpips_squeeze=0.1 * k) for k, row in enumerate(masked_rows(ours, {}))}
    first, second = table_3(masked, {"without depth": result("d", lpips_squeeze=0.9), "none": None}, "val")
    rows = [row[:3] for row in first.rows if row[0] == "without depth"]
    assert rows == [
        ("without depth", "trained without", "DIV2K-val, the paper"),
        ("without depth", "masked at inference", "val"),
        ("without depth", "trained without", "val"),
    ]
    assert [NOT_TRAINED in row for row in first.rows if row[0] == "none"] == [False, False, True]
    assert [row[1] for row in second.rows if row[0] == "both on"] == ["as it is"] * 2


def test_ablation_rows_switch_off_what_they_say():
    ours = Method(name="compact", kind="profile", profile="compact", options=UpscaleOptions(num_steps=3))
    rows = masked_rows(ours, {"depth": 0.4})
    assert rows["all"] == ours and all(row.options.num_steps == 3 for row in rows.values())
    assert rows["none"].options.modalities == {"text": 1.0}
    assert set(rows["without edge"].options.modalities) == {"segmentation", "depth", "dino", "text"}
    assert rows["routing off"].options.intervention.expert_weights == {"depth": 0.4}
    assert rows["temperature off"].options.intervention.temperature == 1.0
    assert len({row.name for row in rows.values()}) == len(rows) == 8


def test_mean_weights_are_the_routers(tmp_path):
    upscaler = tiny_upscaler()
    lr_image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    write_png(tmp_path / "lr.png", lr_image)
    found = measure_mean_weights(upscaler, [Pair("p", tmp_path / "lr.png", tmp_path / "hr.png")])
    maps = upscaler.upscale(lr_image.astype(np.float32) / 255, UpscaleOptions()).maps
    assert found == pytest.approx({name: float(maps[name].mean()) for name in found}, abs=1e-5)


def test_checkpoints_trained_without_a_part_are_named_by_row(tmp_path):
    texts = [f"depth={tmp_path}", f"routing={tmp_path}"]
    assert parse_trained_without(texts) == {"without depth": tmp_path, "routing off": tmp_path}
    with pytest.raises(EvaluationError, match="NAME one of segmentation, depth, edge, dino, routing"):
        parse_trained_without(["smell=."])
    with pytest.raises(EvaluationError, match="no folder nowhere"):
        parse_trained_without(["depth=nowhere"])


def test_two_methods_of_one_name_are_refused():
    ours = Method(name="a", kind="profile")
    with pytest.raises(EvaluationError, match="two methods are called 'a'"):
        Evaluation(Run(Path("x"), Scorer()), {}, ours, (replace(ours, kind="bicubic"),))


def test_the_bench_takes_turns_and_leaves_the_warm_up_out():
    calls: list[str] = []
    upscaler = tiny_upscaler()

    def peer(lr_image):
        calls.append("peer")
        return lr_image

    upscale = upscaler.upscale
    upscaler.upscale = lambda *a: calls.append("ours") or upscale(*a)
    bench = Bench(
        upscaler,
        np.zeros((16, 16, 3), np.float32),
        UpscaleOptions(),
        2,
        1,
        {"p": peer},
        clock=iter([0, 100, 100, 200, *[0, 1, 1, 2] * 2]).__next__,
    )
    found = bench.run()
    assert calls == ["ours", "peer"] * 3
    assert set(found["seconds"]) == {"coarse", "perception", "routing", "denoising", "output", "whole", "peer p"}
    assert found["seconds"]["whole"] == {"median": 1, "low": 1, "high": 1, "min": 1, "max": 1}
    assert found["times_peer"] == {"p": 1}
    assert found["peak_memory_mb"] > 10
    table = bench_table(found)
    assert [row[0] for row in table.rows][-2:] == ["whole", "peer p"]
    assert "float32" in table.notes[0]


def test_an_lr_image_of_any_size_is_the_photograph_mirrored():
    photograph = np.arange(6, dtype=np.float32).reshape(2, 3, 1).repeat(3, 2)
    assert make_lr_image(photograph, 5)[0, :, 0].tolist() == [0, 1, 2, 1, 0]
    assert make_lr_image(photograph, 5)[:, 0, 0].tolist() == [0, 3, 0, 3, 0]
    assert make_lr_image(photograph, 1).shape == (1, 1, 3)
