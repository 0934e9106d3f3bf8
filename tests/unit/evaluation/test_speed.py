"""The speed command runs and counts; what it measures is for a quiet machine."""

import json
from dataclasses import replace

from evaluation import speed
from evaluation.speed import Timing, main, report


def test_it_times_ours_beside_the_stock_transformer(monkeypatch, capsys):
    tiny = replace(
        speed.SMALL,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
    )
    monkeypatch.setattr(speed, "SMALL", tiny)
    monkeypatch.setattr(speed, "SIDE", 8)
    assert main(["--rounds", "2", "--threads", "1", "--fused", "--json"]) == 0
    timings = {timing["name"]: timing for timing in json.loads(capsys.readouterr().out)}
    assert list(timings) == ["stock", "ours r1", "ours orig", "ours r1, fused"]
    assert all(0 < timing["least"] <= timing["median"] for timing in timings.values())
    assert timings["stock"]["tflop"] < timings["ours orig"]["tflop"] < timings["ours r1"]["tflop"]
    assert timings["ours r1"]["tflop"] < timings["ours r1, fused"]["tflop"]


def test_the_table_tells_ratios_and_the_share_of_the_peak():
    lines = report([Timing("stock", 0.1, 0.09, 2.0), Timing("ours", 0.2, 0.19, 4.0)], peak_tflops=100).splitlines()
    assert lines[2].split() == ["ours", "200.0", "190.0", "2.000", "5.00", "4.000", "20.0%"]
    assert "-" in report([Timing("stock", 0.1, 0.09, 2.0)], None)
