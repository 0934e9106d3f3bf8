"""bfloat16 is chosen by what the CPU can and the probe finds, and changes little."""

import numpy as np
import pytest
import torch
from torch import nn

from models import precision
from models.precision import bf16_pays, choose_dtype, reduce_weights
from models.requests import UpscaleOptions
from tests.unit.models.test_pipeline import picture
from tests.unit.models.tiny import tiny_network, tiny_upscaler

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has_it", "pays", "chosen"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_auto_needs_the_instructions_and_a_probe_that_pays(monkeypatch, has_it, pays, chosen):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_it)
    assert choose_dtype("auto", CPU, lambda: pays) is chosen
    assert choose_dtype("auto", torch.device("cuda"), lambda: pays) is torch.float32


def test_a_dtype_that_is_asked_for_is_taken_without_a_probe():
    for name in ("fp32", "bf16"):
        assert choose_dtype(name, CPU, lambda: pytest.fail("probed")) is precision.DTYPES[name]


@pytest.mark.parametrize(("asked", "words"), [("fp8", "unknown; use auto"), ("fp16", "fp16 needs a GPU")])
def test_a_dtype_that_cannot_be_is_refused_with_advice(asked, words):
    with pytest.raises(ValueError, match=words):
        choose_dtype(asked, CPU, lambda: True)


class Clock:
    """Every float32 run takes one second, every bfloat16 run `reduced_seconds`."""

    def __init__(self, reduced_seconds: float) -> None:
        self.steps = iter([0.0, 1.0, 0.0, reduced_seconds] * 100)

    def __call__(self) -> float:
        return next(self.steps)


@pytest.mark.parametrize(("reduced_seconds", "pays"), [(0.5, True), (0.95, False), (2.0, False)])
def test_the_probe_wants_it_clearly_faster(reduced_seconds, pays):
    assert bf16_pays(tiny_network().denoiser, 8, Clock(reduced_seconds)) is pays


def test_the_probe_refuses_a_kernel_that_is_wrong(monkeypatch):
    def spoil(part: nn.Module, dtype: torch.dtype) -> None:
        reduce_weights(part, dtype)
        nn.init.constant_(part.proj_out.weight, float("nan"))

    denoiser = tiny_network().denoiser
    monkeypatch.setattr(precision, "reduce_weights", spoil)
    assert bf16_pays(denoiser, 8, Clock(0.5)) is False
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}  # the network itself is left as it was


def test_bf16_differs_little_from_float32():
    exact, reduced = tiny_upscaler(), tiny_upscaler()
    reduced.network.use_dtype(torch.bfloat16)
    assert (exact.describe()["dtype"], reduced.describe()["dtype"]) == ("float32", "bfloat16")
    lr_image, options = picture(20, 24), UpscaleOptions(num_steps=2, cfg_scale=2.0)
    a, b = exact.upscale(lr_image, options), reduced.upscale(lr_image, options)
    assert 0 < np.abs(a.maps["uncertainty"] - b.maps["uncertainty"]).max() < 1e-3
    difference = np.abs(a.sr_image - b.sr_image)
    assert 0 < difference.max() < 0.02 and difference.mean() < 2e-3
    for name in ("segmentation", "depth", "edge", "dino"):
        assert b.maps[name].dtype == np.float32
        assert np.abs(a.maps[name] - b.maps[name]).max() < 0.01
        assert np.allclose(a.temperatures[name], b.temperatures[name], atol=0.01)
    coarse = [u.upscale(lr_image, UpscaleOptions(preset="fast")).sr_image for u in (exact, reduced)]
    assert 0 < np.abs(coarse[0] - coarse[1]).max() < 1 / 255  # its residual alone is reduced


def test_a_float32_network_leaves_the_autocast_of_its_training_on():
    network, found = tiny_network(), []
    network.coarse.tail.register_forward_hook(lambda _module, _inputs, answer: found.append(answer.dtype))
    with torch.inference_mode():
        network.estimate(torch.rand(1, 3, 16, 16))
        with torch.autocast("cpu", torch.bfloat16):
            network.estimate(torch.rand(1, 3, 16, 16))
    assert found == [torch.float32, torch.bfloat16]
