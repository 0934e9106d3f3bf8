"""The paper's six metrics through `pyiqa`, an extra: LPIPS (AlexNet), LIQE, WaDIQaM, MUSIQ, CLIPIQA, HyperIQA.

pyiqa fetches the weights of each metric at its first use, from where its authors put them; licences are theirs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.errors import EvaluationError

# our name -> pyiqa's; WaDIQaM is the no-reference one, whose paper values may be negative
NAMES = {
    "lpips": "lpips",
    "liqe": "liqe",
    "wadiqam": "wadiqam_nr",
    "musiq": "musiq",
    "clipiqa": "clipiqa",
    "hyperiqa": "hyperiqa",
}
FULL_REFERENCE = {"lpips"}
ADVICE = "evaluate without --paper-metrics, or install the extra: pip install 'm3esr[paper-metrics]'"


class PaperMetrics:
    """Callable on an SR and an HR image, (H, W, 3) uint8 -> the six scores by our name.

    Raises EvaluationError where pyiqa cannot be imported or cannot have the weights of a metric.
    """

    def __init__(self, device: str = "cpu"):
        create = find_pyiqa().create_metric
        self.metrics: dict[str, Callable[..., Any]] = {}
        for ours, theirs in NAMES.items():
            try:
                self.metrics[ours] = create(theirs, device=device)
            except Exception as error:  # whatever a download, a hub client or a file raises
                raise EvaluationError(
                    f"the weights of {ours} cannot be had ({type(error).__name__}: {error}). pyiqa downloads them at "
                    "the first use: connect once, put its cache in place, or evaluate without --paper-metrics"
                ) from error

    def __call__(self, sr_image: NDArray[np.uint8], hr_image: NDArray[np.uint8]) -> dict[str, float]:
        sr, hr = (torch.from_numpy(a.copy()).permute(2, 0, 1)[None].float() / 255 for a in (sr_image, hr_image))
        with torch.inference_mode():
            return {
                name: float(metric(sr, hr) if name in FULL_REFERENCE else metric(sr))
                for name, metric in self.metrics.items()
            }


def find_pyiqa() -> Any:
    try:
        import pyiqa
    except Exception as error:  # torchvision built for another torch raises RuntimeError, not ImportError
        raise EvaluationError(
            f"pyiqa, which has the paper's six metrics, cannot be imported ({type(error).__name__}: {error}); "
            f"it needs a torchvision that fits the installed torch. {ADVICE[0].upper()}{ADVICE[1:]}"
        ) from error
    return pyiqa
