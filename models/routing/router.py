"""The router: a small transformer over LR patches and uncertainty that says which expert to trust (Section 3.3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.transformer import EncoderLayer

PATCH = 4  # LR pixels per token side, 16 at x4


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    width: int = 96
    num_heads: int = 3
    num_layers: int = 2
    modalities: tuple[str, ...] = ("segmentation", "depth", "edge", "dino")


class UncertaintyRouter(nn.Module):
    """LR image (B, 3, H, W) in [0, 1], U(x) (B, 1, H/4, W/4) -> per modality expert weights (B, H/4, W/4) in [0, 1].

    Sigmoid per modality: the paper asks for w in [0, 1] and not that the experts compete. No timestep enters, so
    the weights of an image are computed once. How U enters is not said: here log(1 + 10 U) joins the pixels of a patch.
    """

    def __init__(self, config: RouterConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(3 * PATCH**2 + 1, config.width)
        # positions come from a depthwise convolution, so any image size is like those seen in training
        self.position = nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.width)
        self.layers = nn.ModuleList(EncoderLayer(config.width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.to_weights = nn.Linear(config.width, len(config.modalities))
        nn.init.normal_(self.to_weights.weight, std=0.02)
        nn.init.zeros_(self.to_weights.bias)

    def forward(self, lr_image: Tensor, uncertainty_map: Tensor) -> dict[str, Tensor]:
        return {name: logits.sigmoid() for name, logits in self.logits(lr_image, uncertainty_map).items()}

    def logits(self, lr_image: Tensor, uncertainty_map: Tensor) -> dict[str, Tensor]:
        """The weights before their sigmoid, any real number."""
        patches = F.pixel_unshuffle(lr_image - 0.5, PATCH)
        cues = torch.cat([patches, torch.log1p(10 * uncertainty_map)], 1)
        grid = self.embed(cues.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        grid = grid + self.position(grid)
        height, width = grid.shape[-2:]
        x = grid.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        logits = self.to_weights(self.norm(x)).unflatten(1, (height, width))
        return {name: logits[..., m] for m, name in enumerate(self.config.modalities)}
