"""The transformer's matrix products: on a CPU in inference they go to oneDNN with their activation, elsewhere to torch.

torch's own product on a CPU is MKL's, which first writes the bias out as a whole matrix and leaves the activation to
another pass over memory. oneDNN does both inside the product; torch.compile reaches for the same operator.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """nn.Linear with an activation of its own: (..., in_features) -> (..., out_features).

    Both ways give the same numbers but for rounding. Gradients, autocast to another dtype than the weight's, compiled
    graphs, GPUs and CPUs without vector units for the dtype take torch's.
    """

    def __init__(self, in_features: int, out_features: int, activation: Literal["none", "gelu"] = "none"):
        super().__init__(in_features, out_features)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self.fits_onednn(x):
            return torch.ops.mkldnn._linear_pointwise(
                x.to(self.weight.dtype), self.weight, self.bias, self.activation, [], "tanh"
            )
        product = super().forward(x)
        return F.gelu(product, approximate="tanh") if self.activation == "gelu" else product

    def fits_onednn(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return dtype == self.weight.dtype and has_onednn(dtype)


def has_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
