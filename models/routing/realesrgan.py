"""Real-ESRGAN's two coarse networks, RRDBNet and SRVGGNetCompact, under their official state-dict names."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import read_foreign

UNSHUFFLE = {4: 1, 2: 2, 1: 4}  # the trunk always enlarges by 4; smaller scales shrink its input first
OLD_NAMES = {
    "RRDB_trunk": "body",
    "trunk_conv": "conv_body",
    "upconv1": "conv_up1",
    "upconv2": "conv_up2",
    "HRconv": "conv_hr",
}


@dataclass(frozen=True)
class RRDBNetConfig:
    """RealESRGAN_x4plus by default."""

    num_in_ch: int = 3
    num_out_ch: int = 3
    scale: int = 4
    num_feat: int = 64
    num_block: int = 23
    num_grow_ch: int = 32


@dataclass(frozen=True)
class SRVGGNetCompactConfig:
    """realesr-general-x4v3 by default."""

    num_in_ch: int = 3
    num_out_ch: int = 3
    num_feat: int = 64
    num_conv: int = 32
    upscale: int = 4


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each reading the outputs of all before it."""

    def __init__(self, num_feat: int, num_grow_ch: int):
        super().__init__()
        for i in range(5):
            out_channels = num_grow_ch if i < 4 else num_feat
            self.add_module(f"conv{i + 1}", conv3x3(num_feat + i * num_grow_ch, out_channels))

    def forward(self, features: Tensor) -> Tensor:
        read = features
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            read = torch.cat((read, F.leaky_relu(conv(read), 0.2)), dim=1)
        return self.conv5(read) * 0.2 + features


class RRDB(nn.Module):
    """Residual in residual: three dense blocks inside one more residual."""

    def __init__(self, num_feat: int, num_grow_ch: int):
        super().__init__()
        self.rdb1 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb2 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb3 = ResidualDenseBlock(num_feat, num_grow_ch)

    def forward(self, features: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(features))) * 0.2 + features


class RRDBNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 3, H * scale, W * scale), not clamped. Any H and W."""

    def __init__(self, config: RRDBNetConfig | None = None):
        super().__init__()
        self.config = config = config or RRDBNetConfig()
        if config.scale not in UNSHUFFLE:
            raise ValueError(f"RRDBNet has scales {sorted(UNSHUFFLE)}, not {config.scale}")
        width = config.num_feat
        self.conv_first = conv3x3(config.num_in_ch * UNSHUFFLE[config.scale] ** 2, width)
        self.body = nn.Sequential(*(RRDB(width, config.num_grow_ch) for _ in range(config.num_block)))
        self.conv_body = conv3x3(width, width)
        self.conv_up1 = conv3x3(width, width)
        self.conv_up2 = conv3x3(width, width)
        self.conv_hr = conv3x3(width, width)
        self.conv_last = conv3x3(width, config.num_out_ch)

    def forward(self, lr_image: Tensor) -> Tensor:
        height, width = lr_image.shape[-2:]
        features = self.conv_first(self.unshuffle(lr_image))
        features = features + self.conv_body(self.body(features))
        features = F.leaky_relu(self.conv_up1(enlarge(features, 2)), 0.2)
        features = F.leaky_relu(self.conv_up2(enlarge(features, 2)), 0.2)
        sr_image = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))
        return sr_image[..., : height * self.config.scale, : width * self.config.scale]

    def unshuffle(self, lr_image: Tensor) -> Tensor:
        block = UNSHUFFLE[self.config.scale]
        height, width = lr_image.shape[-2:]
        bottom, right = -height % block, -width % block
        if bottom or right:
            # RealESRGANer mirrors odd sides; an image narrower than the mirror can only repeat its edge.
            mode = "reflect" if min(height, width) > max(bottom, right) else "replicate"
            lr_image = F.pad(lr_image, (0, right, 0, bottom), mode=mode)
        return F.pixel_unshuffle(lr_image, block) if block > 1 else lr_image


class SRVGGNetCompact(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 3, H * upscale, W * upscale), not clamped. All work is at LR size.

    Only PReLU activations: every published checkpoint has them.
    """

    def __init__(self, config: SRVGGNetCompactConfig | None = None):
        super().__init__()
        self.config = config = config or SRVGGNetCompactConfig()
        width = config.num_feat
        layers: list[nn.Module] = [conv3x3(config.num_in_ch, width), nn.PReLU(width)]
        for _ in range(config.num_conv):
            layers += [conv3x3(width, width), nn.PReLU(width)]
        layers.append(conv3x3(width, config.num_out_ch * config.upscale**2))
        self.body = nn.Sequential(*layers)

    def forward(self, lr_image: Tensor) -> Tensor:
        residual = F.pixel_shuffle(self.body(lr_image), self.config.upscale)
        return residual + enlarge(lr_image, self.config.upscale)


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def enlarge(features: Tensor, scale: int) -> Tensor:
    return F.interpolate(features, scale_factor=scale, mode="nearest")


def select_state(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """The weights inside a checkpoint: its "params_ema" if there are any, else "params", else itself."""
    for key in ("params_ema", "params"):
        if isinstance(state := checkpoint.get(key), Mapping):
            return dict(state)
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def rename_old(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BSRGAN's (and the first ESRGAN's) names for an RRDBNet's weights -> Real-ESRGAN's; others stay as they are."""
    if "RRDB_trunk.0.RDB1.conv1.weight" not in state:
        return dict(state)
    renamed = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        block = [part.lower() if part.startswith("RDB") else part for part in rest]
        renamed[".".join([OLD_NAMES.get(first, first), *block])] = value
    return renamed


def build_from_state(state: Mapping[str, Tensor]) -> RRDBNet | SRVGGNetCompact:
    """Reads the network's sizes off its weights, builds it and loads them.

    Raises ValueError when the weights belong to neither network, or do not fit the one they resemble.
    """
    network: RRDBNet | SRVGGNetCompact
    state = rename_old(state)
    try:
        if "conv_first.weight" in state:
            network = RRDBNet(infer_rrdb_config(state))
        elif "body.0.weight" in state and "body.1.weight" in state:
            network = SRVGGNetCompact(infer_srvgg_config(state))
        else:
            raise ValueError("these weights are neither an RRDBNet's nor an SRVGGNetCompact's")
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the weights do not fit a Real-ESRGAN network: {error}") from error
    return network


def infer_rrdb_config(state: Mapping[str, Tensor]) -> RRDBNetConfig:
    num_feat, in_channels = state["conv_first.weight"].shape[:2]
    num_out_ch = state["conv_last.weight"].shape[0]
    # Scale shows only in the input channels (3, 12, 48), given that as many colours go in as come out.
    scales = {num_out_ch * block**2: scale for scale, block in UNSHUFFLE.items()}
    if in_channels not in scales:
        raise ValueError(f"an RRDBNet with {in_channels} input channels has no known scale")
    return RRDBNetConfig(
        num_in_ch=num_out_ch,
        num_out_ch=num_out_ch,
        scale=scales[in_channels],
        num_feat=num_feat,
        num_block=1 + max(int(key.split(".")[1]) for key in state if key.startswith("body.")),
        num_grow_ch=state["body.0.rdb1.conv1.weight"].shape[0],
    )


def infer_srvgg_config(state: Mapping[str, Tensor]) -> SRVGGNetCompactConfig:
    num_feat, num_in_ch = state["body.0.weight"].shape[:2]
    last = max(int(key.split(".")[1]) for key in state if key.startswith("body."))
    # The input is added to the output, so as many colours go in as come out.
    upscale = isqrt(state[f"body.{last}.weight"].shape[0] // num_in_ch)
    return SRVGGNetCompactConfig(num_in_ch, num_in_ch, num_feat, (last - 2) // 2, upscale)


def load_realesrgan(path: Path, device: str | torch.device = "cpu") -> RRDBNet | SRVGGNetCompact:
    """Loads an official .pth (Real-ESRGAN's or BSRGAN's), or a .safetensors with the same names, ready for inference.

    Raises ValueError, naming the file, when it is missing, broken or holds another network.
    """
    try:
        network = build_from_state(select_state(read_foreign(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return network.requires_grad_(False).eval().to(device)
