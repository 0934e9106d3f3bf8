"""m3esr evaluate, audit and bench: their files and tables, and what a person reads when something is wrong."""

import json
import sys

import numpy as np
import pytest

from evaluation.production import write_png
from tests.unit.m3esr.test_cli import run


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for folder, side in (("hr", 192), ("lr_real", 48)):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for k in range(3):
            low = rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
            write_png(tmp_path / "photos" / folder / f"p{k}.png", low.repeat(16, 0).repeat(16, 1))
    return tmp_path / "photos"


def test_evaluate_makes_tables_files_and_sheets_in_one_go(monkeypatch, capsys, tmp_path, data):
    files = {name: tmp_path / f"report.{name}" for name in ("markdown", "json")}
    arguments = ["evaluate", "--data", str(data), "--profile", "compact", "--preset", "fast", "--limit", "2"]
    arguments += ["--against", "bicubic", "--against", f"HR={data / 'hr'}", "--table1", "--out", str(tmp_path / "out")]
    arguments += ["--sheets", "1", "--threads", "1", *(f"--{name}={path}" for name, path in files.items())]
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "photos/lr_real, 2 images" in out and "--lpips FILE adds LPIPS" in out
    means = {n: m["mean"] for n, m in json.loads(files["json"].read_text())["sets"]["lr_real"].items()}
    assert list(means) == ["bicubic", "HR", "compact@fast"]
    assert means["HR"]["psnr_y"] is None and means["HR"]["ssim_y"] == pytest.approx(1)
    assert means["compact@fast"]["seconds"] > 0 and means["compact@fast"]["memory_mb"] > 50
    assert "| M3ESR, Ours-Q | DIV2K-val, the paper | 0.2729 |" in files["markdown"].read_text()
    assert len(list((tmp_path / "out" / "lr_real" / "sheets").iterdir())) == 1


def test_audit_writes_what_it_measured(monkeypatch, capsys, tmp_path, data):
    report = tmp_path / "audit.json"
    code, out, _ = run(monkeypatch, capsys, "audit", str(data), "--json", str(report))
    assert code == 0
    assert "Gamma = sum_i Cov(w_i, Delta_i), 3 images of photos/lr_real" in out and "Router sanity" in out
    told = json.loads(report.read_text())
    assert told["model"]["dtype"] == "float32" and told["router_sanity"]["is_blind"] is False


def test_bench_prints_every_stage(monkeypatch, capsys, tmp_path):
    report = tmp_path / "bench.json"
    arguments = ["bench", "--size", "20", "--repeats", "2", "--against", "bicubic", "--json", str(report)]
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0
    for stage in ("coarse", "perception", "routing", "denoising", "output", "whole", "peer bicubic"):
        assert stage in out
    assert json.loads(report.read_text())["lr_size"] == [20, 20]


def test_an_image_without_evaluation_says_where_it_is(monkeypatch, capsys, data):
    monkeypatch.setitem(sys.modules, "evaluation", None)
    for name in [name for name in sys.modules if name.startswith("evaluation.")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = run(monkeypatch, capsys, "audit", str(data))
    assert code == 2 and "evaluation is not part of this image" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--data", "nowhere"], "nowhere has no folder hr/"),
        (["evaluate", "--data", "DATA", "--lr", "lr_x"], "no folder lr_x/; it has lr_real"),
        (["evaluate", "--data", "DATA", "--against", "gan"], "'gan': no file or folder gan; a method is"),
        (["evaluate", "--data", "DATA", "--preset", "quick"], "unknown preset 'quick'"),
        (["evaluate", "--data", "DATA", "--num-steps", "0"], "outside 1..100"),
        (["evaluate", "--data", "DATA", "--lpips", "nowhere.npz"], "nowhere.npz"),
        (["evaluate", "--data", "DATA", "--niqe", "nowhere.npz"], "nowhere.npz"),
        (["evaluate", "--data", "DATA", "--trained-without", "smell=."], "is not NAME=FOLDER"),
        (["audit", "DATA", "--limit", "2"], "needs 3 pairs or more"),
        (["bench", "--against", "x=DATA"], "is a folder of outputs: there is nothing to time"),
        (["bench", "--profile", "quality"], "m3esr models pull quality"),
    ],
)
def test_what_a_person_can_fix_is_one_line_and_exit_code_two(monkeypatch, capsys, tmp_path, data, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M3ESR_MODELS_DIR", str(tmp_path / "models"))
    code, out, err = run(monkeypatch, capsys, *(a.replace("DATA", str(data)) for a in arguments))
    assert (code, out) == (2, "")
    told = [line for line in err.splitlines() if line.strip()]
    assert words in told[-1] and told[-1].startswith("m3esr: ") and "Traceback" not in err
