"""PerceptionNet: one small ViT with a convolution stem that reads segments, relative depth and DINO-style features from the LR image.

    lr_image (B, 3, H, W) -> stem (B, C, H/2, W/2) -> tokens (B, D, H/4, W/4) -> dino | segmentation | depth

Notable: overlapping patches (the stem is convolutional, so half a pixel of shift does not change the token raster),
positions from convolutions and from normalised coordinates (so any size works), both dense heads share one upsampled map.
The paper (Sec. 3.2) uses Mask2Former, Depth-Anything-V2 and DINO here; this is the licence-clean stand-in of `compact`.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.modalities.config import PerceptionConfig

PATCH = 4  # LR pixels per token side


@dataclass(frozen=True)
class Perception:
    """What PerceptionNet sees in a batch of LR images."""

    dino: Tensor  # (B, Cd, H/4, W/4), teacher features in principal components; compare by cosine
    segmentation: Tensor  # (B, S, H/2, W/2) logits
    depth: Tensor  # (B, 1, H/2, W/2) relative inverse depth in [0, 1]; higher is closer


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """Depthwise convolution, then a two-layer perceptron per pixel; residual, (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, mlp_ratio: int, kernel: int = 7) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, mlp_ratio * channels)
        self.project = nn.Linear(mlp_ratio * channels, channels)
        self.gain = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y), approximate="tanh"))
        return x + (self.gain * y).permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """Pre-norm transformer block on a token grid (B, D, h, w); a depthwise convolution tells each token its neighbours."""

    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.mlp_ratio * width)
        self.project = nn.Linear(config.mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        batch, width, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, L, D)
        qkv = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.num_heads, width // self.num_heads))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, N, L, K)
        seen = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(seen.transpose(1, 2).flatten(2))
        tokens = tokens + self.project(F.gelu(self.expand(self.norm2(tokens)), approximate="tanh"))
        return tokens.transpose(1, 2).unflatten(2, (h, w))


class DenseHead(nn.Module):
    """3x3 convolution and a per-pixel readout on the shared map at LR/2."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.read = nn.Conv2d(channels, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(F.gelu(self.mix(x), approximate="tanh"))


class PerceptionNet(nn.Module):
    """lr_image (B, 3, H, W) in [0, 1], H and W multiples of 4 -> Perception. Raises ValueError for other sides."""

    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        self.config = config
        stem, width = config.stem_width, config.width
        self.stem = nn.Conv2d(12, stem, 3, padding=1)
        self.stem_blocks = nn.Sequential(*(ConvBlock(stem, config.mlp_ratio) for _ in range(config.num_stem_blocks)))
        self.down = nn.Sequential(ChannelNorm(stem), nn.Conv2d(stem, width, 4, stride=2, padding=1))
        self.position = nn.Linear(16, width)
        self.conv_blocks = nn.Sequential(*(ConvBlock(width, config.mlp_ratio) for _ in range(config.num_conv_blocks)))
        self.blocks = nn.Sequential(*(AttentionBlock(config) for _ in range(config.num_blocks)))
        self.norm = ChannelNorm(width)
        self.dino_head = nn.Conv2d(width, config.dino_channels, 1)
        self.up = nn.Conv2d(width, 4 * stem, 1)
        self.segmentation_head = DenseHead(stem, config.num_segments)
        self.depth_head = DenseHead(stem, 1)

    def forward(self, lr_image: Tensor) -> Perception:
        height, width = lr_image.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"PerceptionNet needs sides that are multiples of {PATCH}, not {height} x {width}: pad first")
        fine = self.stem_blocks(self.stem(F.pixel_unshuffle(lr_image * 4 - 2, 2)))  # (B, C, H/2, W/2)
        tokens = self.down(fine)  # (B, D, H/4, W/4)
        tokens = tokens + self.position(_coordinates(tokens)).permute(2, 0, 1)
        tokens = self.norm(self.blocks(self.conv_blocks(tokens)))
        dense = F.pixel_shuffle(self.up(tokens), 2) + fine
        return Perception(
            dino=self.dino_head(tokens),
            segmentation=self.segmentation_head(dense),
            depth=torch.sigmoid(self.depth_head(dense)),
        )


def _coordinates(tokens: Tensor) -> Tensor:
    """(h, w, 16): sine and cosine of the place in the image, -1 to 1 a side, at four frequencies per axis.

    Relative to the image, not counted in tokens: "the ground is below" holds at every size.
    """
    height, width = tokens.shape[-2:]
    frequency = math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0], device=tokens.device)
    rows = (torch.arange(height, device=tokens.device) * 2 + 1 - height)[:, None] / height * frequency
    columns = (torch.arange(width, device=tokens.device) * 2 + 1 - width)[:, None] / width * frequency
    y = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(height, width, 8)
    x = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, width, 8)
    return torch.cat([y, x], dim=2).to(tokens.dtype)


def save_perception(net: PerceptionNet, path: Path, extra: dict[str, str] | None = None) -> None:
    """Write the weights with the config as JSON under "config" in the safetensors metadata, beside `extra` texts."""
    from safetensors.torch import save_file

    state = {name: value.detach().float().contiguous() for name, value in net.state_dict().items()}
    partial = path.with_suffix(".partial")  # a reader never sees half a file
    save_file(state, str(partial), metadata={"config": json.dumps(net.config.to_dict()), **(extra or {})})
    partial.replace(path)


def load_perception(path: Path, device: str | torch.device = "cpu") -> PerceptionNet:
    """Build the network that a file describes and load its weights; in evaluation mode."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt", device=str(device)) as file:
        config = PerceptionConfig(**json.loads(file.metadata()["config"]))
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
    net = PerceptionNet(config)
    net.load_state_dict(state)
    return net.to(device).eval()
