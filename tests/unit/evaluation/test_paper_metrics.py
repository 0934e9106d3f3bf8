"""The six metrics of the paper: the seam to pyiqa, and what a person reads where it is not."""

import sys
import types

import numpy as np
import pytest
import torch

from evaluation.errors import EvaluationError
from evaluation.paper_metrics import NAMES, PaperMetrics

IMAGE = np.full((8, 6, 3), 51, np.uint8)


def stand_in(create) -> types.ModuleType:
    module = types.ModuleType("pyiqa")
    module.create_metric = create
    return module


def test_every_metric_is_asked_as_it_wants_to_be(monkeypatch):
    asked = {}

    def create(name, device):
        def metric(*images):
            asked[name] = [tuple(image.shape) for image in images]
            assert torch.allclose(images[0], torch.tensor(0.2))
            return torch.tensor([0.25])

        return metric

    monkeypatch.setitem(sys.modules, "pyiqa", stand_in(create))
    scores = PaperMetrics()(IMAGE, IMAGE)
    assert scores == dict.fromkeys(("lpips", "liqe", "wadiqam", "musiq", "clipiqa", "hyperiqa"), 0.25)
    assert asked.pop("lpips") == [(1, 3, 8, 6)] * 2  # the one with a reference
    assert asked == {name: [(1, 3, 8, 6)] for name in ("liqe", "wadiqam_nr", "musiq", "clipiqa", "hyperiqa")}


def test_without_pyiqa_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(EvaluationError, match=r"cannot be imported .*pip install 'm3esr\[paper-metrics\]'"):
        PaperMetrics()


def test_a_torchvision_that_does_not_fit_is_told_alike(monkeypatch, tmp_path):
    (tmp_path / "pyiqa.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    with pytest.raises(EvaluationError, match=r"RuntimeError: operator torchvision::nms .*fits the installed torch"):
        PaperMetrics()


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    def create(name, device):
        if name == NAMES["musiq"]:
            raise OSError("no route to host")
        return lambda *_: 0.0

    monkeypatch.setitem(sys.modules, "pyiqa", stand_in(create))
    with pytest.raises(EvaluationError, match=r"the weights of musiq cannot be had .*no route to host"):
        PaperMetrics()
