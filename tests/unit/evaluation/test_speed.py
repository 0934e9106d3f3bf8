"""The speed command runs and counts; what it measures is for a quiet machine."""

import json
from dataclasses import replace

import torch

from evaluation import speed
from evaluation.speed import Timing, flop_counter, main, report
from models.denoising.linear import Linear


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
    monkeypatch.setattr(speed, "TEXT_TOKENS", 3)  # with more of them than patches the stock does the most work
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


def test_products_and_attention_are_counted_on_a_cpu():
    layer, heads = Linear(24, 40, "gelu"), torch.randn(1, 2, 7, 8)
    for is_training in (True, False):  # through torch, and through oneDNN where there is one
        with torch.set_grad_enabled(is_training), flop_counter() as counter:
            layer(torch.randn(3, 5, 24))
        assert counter.get_total_flops() == 2 * 15 * 24 * 40
    with torch.no_grad(), flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    assert counter.get_total_flops() == 2 * (2 * 2 * 7 * 7 * 8)
