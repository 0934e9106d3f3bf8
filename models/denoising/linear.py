"""The transformer's matrix products: on a CPU in inference they go to oneDNN with their activation, elsewhere to torch.

torch's own float32 product on a CPU is MKL's, which first writes the bias out as a whole matrix and leaves the
activation to another pass over memory. oneDNN does both inside the product; it is what torch.compile takes there too.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """nn.Linear with an activation of its own: (..., in_features) -> (..., out_features).

    activation: `gelu` is the tanh approximation of SD3. Both ways of computing differ by rounding only.
    """

    def __init__(self, in_features: int, out_features: int, activation: Literal["none", "gelu"] = "none"):
        super().__init__(in_features, out_features)
        self.activation = activation
        self.packed: Tensor | None = None  # the weight in oneDNN's own order, after `pack`

    def forward(self, x: Tensor) -> Tensor:
        if self.fits_onednn(x):
            x = x.to(self.kept.dtype)  # as autocast would
            return torch.ops.mkldnn._linear_pointwise(x, self.kept, self.bias, self.activation, [], "tanh")
        product = F.linear(x, self.weight if self.packed is None else self.packed.to_dense(), self.bias)
        return F.gelu(product, approximate="tanh") if self.activation == "gelu" else product

    @property
    def kept(self) -> Tensor:
        """The weight as it is held, packed or not."""
        return self.weight if self.packed is None else self.packed

    def pack(self) -> None:
        """For inference on a CPU, 3 to 6 % faster: the weight is kept as oneDNN reads it, not reordered in every call.

        It then is no parameter any more. Nothing happens where oneDNN does not multiply.
        """
        if self.packed is None and self.weight.device.type == "cpu" and has_onednn(self.weight.dtype):
            with torch.inference_mode():
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            self.register_parameter("weight", None)

    def fits_onednn(self, x: Tensor) -> bool:
        """oneDNN's operator has no gradient, and compilers fuse better what they can see into."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return dtype == self.kept.dtype and has_onednn(dtype)


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this CPU and this build of torch multiply `dtype` well by it. On other CPUs than x86 nobody measured."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # a private name, though the same since torch 2.0
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def count_parameters(network: nn.Module) -> int:
    """Packed weights, which are parameters no more, included."""
    packed = sum(
        module.packed.numel()
        for module in network.modules()
        if isinstance(module, Linear) and module.packed is not None
    )
    return packed + sum(parameter.numel() for parameter in network.parameters())
