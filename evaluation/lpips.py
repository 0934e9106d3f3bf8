"""LPIPS with the SqueezeNet backbone (Zhang et al. 2018, v0.1) in torch, read from an `.npz` of its weights.

Figures compare only with other figures of the same backbone. It can be differentiated, so training uses it as a loss.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (slice, index in torchvision's `squeezenet1_1().features`) of every Fire module; slices 2, 3 and 4 begin with pooling
FIRES = ((2, 3), (2, 4), (3, 6), (3, 7), (4, 9), (5, 10), (6, 11), (7, 12))
POOLED_SLICES = (2, 3, 4)


class LpipsSqueeze(nn.Module):
    """Perceptual distance of two RGB images (B, 3, H, W) in [0, 1], sides of at least 32 px -> (B,); low is close."""

    def __init__(self, weights: Path):
        super().__init__()
        arrays = np.load(weights)
        for name in arrays.files:
            if name.startswith("core."):
                self.register_buffer(self.buffer_name(name), torch.from_numpy(arrays[name].copy()))
        self.requires_grad_(False)

    @staticmethod
    def buffer_name(name: str) -> str:
        return name.removeprefix("core.").replace(".", "_")

    def tensor(self, name: str) -> Tensor:
        return self.get_buffer(self.buffer_name(name))

    def convolve(self, x: Tensor, name: str, **kwargs: int) -> Tensor:
        return F.relu(F.conv2d(x, self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), **kwargs))

    def features(self, image: Tensor) -> list[Tensor]:
        x = (image * 2 - 1 - self.tensor("scaling_layer.shift")) / self.tensor("scaling_layer.scale")
        x = self.convolve(x, "net.slice1.0", stride=2)
        outputs, current = [], 1
        for slice_index, fire in FIRES:
            if slice_index != current:
                outputs.append(x)
                current = slice_index
                if slice_index in POOLED_SLICES:
                    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            name = f"net.slice{slice_index}.{fire}"
            x = self.convolve(x, f"{name}.squeeze")
            wide = self.convolve(x, f"{name}.expand3x3", padding=1)
            x = torch.cat([self.convolve(x, f"{name}.expand1x1"), wide], 1)
        return [*outputs, x]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(a.shape[0])
        for k, (fa, fb) in enumerate(zip(self.features(a), self.features(b), strict=True)):
            difference = (normalise(fa) - normalise(fb)).square()
            total = total + F.conv2d(difference, self.tensor(f"lins.{k}.model.1.weight")).mean((1, 2, 3))
        return total


def normalise(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
