"""PerceptionNet: a small ViT on a convolution stem; reads segments, relative depth and DINO-style features.

    lr_image (B, 3, H, W) -> stem -> fine (B, C, H/2, W/2) and tokens (B, D, H/4, W/4)
                          -> transformer -> dino | segmentation | depth

Notable: overlapping patches from a MobileNetV2 stem, which can start from that network's public (Apache-2.0)
weights; positions from convolutions and from normalised coordinates, so any size works; both dense heads read
one upsampled map. The paper (Sec. 3.2) uses Mask2Former, Depth-Anything-V2 and DINO here; this is the
licence-clean stand-in of `compact`.
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
    tokens: Tensor  # (B, D, H/4, W/4), normalised: what all three were read from


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class InvertedResidual(nn.Module):
    """MobileNetV2's block, its normalisation folded away: widen, filter each channel, narrow (B, C, H, W).

    dilation stands in for strides of the original that this network does not take: filters keep their reach.
    """

    def __init__(self, channels: int, num_outputs: int, widening: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        wide = widening * channels
        self.expand = nn.Conv2d(channels, wide, 1) if widening > 1 else nn.Identity()
        self.spatial = nn.Conv2d(wide, wide, 3, stride, padding=0, dilation=dilation, groups=wide)
        self.project = nn.Conv2d(wide, num_outputs, 1)
        # stride 2 is padded at the end only: with the first layer this centres cells on their 4 x 4 pixels
        self.padding = (0, 1, 0, 1) if stride == 2 else (dilation,) * 4
        self.residual = stride == 1 and channels == num_outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if isinstance(self.expand, nn.Conv2d) else x
        y = self.project(F.relu6(self.spatial(F.pad(y, self.padding))))
        return x + y if self.residual else y


class MobileStem(nn.Module):
    """MobileNetV2 up to its tenth block, at up to four times its usual density; its public weights fit.

    lr_image (B, 3, H, W) in [0, 1] -> fine (B, 16, H/2, W/2), coarse (B, 64, H/4, W/4)
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.fine = InvertedResidual(32, 16, 1)
        # outputs and dilation; the third and sixth have stride 2 in the original, hence the dilation
        table = [(24, 1), (24, 1), (32, 1), (32, 2), (32, 2), (64, 2), (64, 4), (64, 4), (64, 4)]
        blocks, channels = [], 16
        for number, (num_outputs, dilation) in enumerate(table):
            stride = 2 if number == 0 else 1
            blocks.append(InvertedResidual(channels, num_outputs, 6, stride, dilation))
            channels = num_outputs
        self.coarse = nn.Sequential(*blocks)

    def forward(self, lr_image: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(F.relu6(self.first(2 * lr_image - 1)))
        return fine, self.coarse(fine)


class AttentionBlock(nn.Module):
    """Pre-norm transformer block on tokens (B, D, h, w); a convolution tells tokens their neighbours."""

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
        _, width, h, w = x.shape
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
    """lr_image (B, 3, H, W) in [0, 1], H and W multiples of 4 -> Perception. Raises ValueError for other
    sides.
    """

    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        self.config = config
        width, fine_width = config.width, config.fine_width
        self.stem = MobileStem()
        self.enter = nn.Sequential(ChannelNorm(64), nn.Conv2d(64, width, 1))
        self.enter_fine = nn.Sequential(ChannelNorm(16), nn.Conv2d(16, fine_width, 1))
        self.position = nn.Linear(16, width)
        self.blocks = nn.Sequential(*(AttentionBlock(config) for _ in range(config.num_blocks)))
        self.norm = ChannelNorm(width)
        self.dino_head = nn.Conv2d(width, config.dino_channels, 1)
        self.up = nn.Conv2d(width, fine_width, 1)
        self.segmentation_head = DenseHead(fine_width, config.num_segments)
        self.depth_head = DenseHead(fine_width, 1)

    def forward(self, lr_image: Tensor) -> Perception:
        height, width = lr_image.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(
                f"PerceptionNet needs sides that are multiples of {PATCH}, not {height} x {width}: pad first"
            )
        fine, coarse = self.stem(lr_image)
        tokens = self.enter(coarse)  # (B, D, H/4, W/4)
        tokens = tokens + self.position(_coordinates(tokens)).permute(2, 0, 1)
        tokens = self.norm(self.blocks(tokens))
        # linear, not learned: a learned upsampling starts as a pattern of period 2, which the maps would show
        up = F.interpolate(self.up(tokens), scale_factor=2, mode="bilinear", align_corners=False)
        dense = up + self.enter_fine(fine)  # (B, C, H/2, W/2)
        return Perception(
            dino=self.dino_head(tokens),
            segmentation=self.segmentation_head(dense),
            depth=torch.sigmoid(self.depth_head(dense)),
            tokens=tokens,
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
    """Write the weights with the config as JSON under "config" in the safetensors metadata, beside `extra`
    texts.
    """
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
