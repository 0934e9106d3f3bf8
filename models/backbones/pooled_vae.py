"""A tiled VAE whose group norms see the whole picture, as SeeSR runs its own: tiles cannot drift apart in colour.

All tiles go through the network together, from one group norm to the next. There they wait, their statistics are
pooled, and each goes on with those of the whole picture. One tile is on the device at a time; the waiting ones are
parked in host memory.

Dimension key: B batch  C channels  h w latent grid
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.memory import TileSizes, free_bytes
from models.backbones.sizes import VAE_SCALE
from models.backbones.vae import OnTile, TiledVae

PADS = {"encode": 4, "decode": 11}  # latent cells of context around a tile, as published: 32 px, 11 cells
Steps = Iterator[nn.GroupNorm]  # runs a tile up to each group norm, which is then applied from outside


@dataclass
class Flow:
    """One tile on its way. Its core is the part that is its own; the rest is context that neighbours own."""

    features: Tensor  # (B, C, ., .), whatever the resolution
    height: int  # cells of the tile
    core: tuple[slice, slice]  # in cells, inside the tile
    is_parked: bool  # waits in host memory

    @property
    def core_features(self) -> Tensor:
        scale = self.features.shape[-2] // self.height  # pixels per cell here
        rows, columns = (slice(s.start * scale, s.stop * scale) for s in self.core)
        return self.features[..., rows, columns]

    def park(self, tensor: Tensor) -> Tensor:
        return tensor.cpu() if self.is_parked else tensor


class PooledVae(TiledVae):
    """`TiledVae` with pooled group norms. The attention in the middle still sees one tile, as published."""

    def read_moments(self, pixels: Tensor, tiles: TileSizes, on_tile: OnTile | None) -> Tensor:
        encoder, quantise = self.network.encoder, self.network.quant_conv
        moments = self.flow("encode", encoder, encoder_steps, pixels, 1 / VAE_SCALE, tiles, on_tile)
        return (moments if quantise is None else quantise(moments.to(self.dtype))).float()

    def paint(self, cells: Tensor, tiles: TileSizes, on_tile: OnTile | None) -> Tensor:
        quantise = self.network.post_quant_conv
        cells = cells if quantise is None else quantise(cells)
        return self.flow("decode", self.network.decoder, decoder_steps, cells, VAE_SCALE, tiles, on_tile)

    def flow(
        self,
        name: str,
        network: Any,
        steps: Callable[[Any, Flow], Steps],
        image: Tensor,
        scale: float,
        tiles: TileSizes,
        on_tile: OnTile | None,
    ) -> Tensor:
        """`network` over all of `image`, in tiles that shrink when memory runs out; `scale`: output per input side."""
        per_cell = VAE_SCALE if scale < 1 else 1
        size = image.shape[-2] // per_cell, image.shape[-1] // per_cell
        num_norms = sum(isinstance(module, nn.GroupNorm) for module in network.modules())

        def whole(side: int) -> Tensor:
            plan = [(row, column) for row in cut(size[0], side) for column in cut(size[1], side)]
            flows = [
                place_tile(image, size, core, PADS[name], per_cell, is_parked=image.is_cuda and len(plan) > 1)
                for core in plan
            ]
            run_pooled(network, steps, flows, image.device, lambda k: on_tile and on_tile(k / num_norms))
            return join(flows, plan, size, int(per_cell * scale))

        with self.placement.use(self.network):
            tiles.choose(name, free_bytes(self.placement.device))
            return tiles.fit(name, whole)


def cut(length: int, side: int) -> list[slice]:
    """Equal parts of an axis, none longer than `side`."""
    count = ceil(length / side)
    ends = [round(length * k / count) for k in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def place_tile(
    image: Tensor, size: tuple[int, int], core: tuple[slice, slice], pad: int, per_cell: int, is_parked: bool
) -> Flow:
    """The tile around a core, with context where the picture has it. per_cell: pixels of `image` per cell."""
    outer = [slice(max(0, s.start - pad), min(n, s.stop + pad)) for s, n in zip(core, size, strict=True)]
    rows, columns = (slice(s.start * per_cell, s.stop * per_cell) for s in outer)
    inner = tuple(slice(c.start - o.start, c.stop - o.start) for c, o in zip(core, outer, strict=True))
    features = image[..., rows, columns]
    return Flow(features.cpu() if is_parked else features, outer[0].stop - outer[0].start, inner, is_parked)


def run_pooled(
    network: Any,
    steps: Callable[[Any, Flow], Steps],
    flows: list[Flow],
    device: torch.device,
    on_norm: Callable[[int], object],
) -> None:
    """Takes every flow through the network; what it gives lies in their `features`."""
    running = [steps(network, flow) for flow in flows]
    num_done = 0
    norm, moments = advance(running, flows, device, None, None)
    while norm is not None:
        num_done += 1
        on_norm(num_done)
        norm, moments = advance(running, flows, device, norm, moments)


def advance(
    running: list[Steps], flows: list[Flow], device: torch.device, norm: nn.GroupNorm | None, moments: Tensor | None
) -> tuple[nn.GroupNorm | None, Tensor | None]:
    """Applies the group norm at which all wait, runs each to its next, and pools what that one will need.

    Returns the next group norm (None at the end) and its mean and mean square, (2, B, groups).
    """
    reached, total, count = None, None, 0
    for steps, flow in zip(running, flows, strict=True):
        flow.features = flow.features.to(device)
        if norm is not None:
            flow.features = normalise(flow.features, norm, moments)
        reached = next(steps, None)
        if reached is not None:
            groups = flow.core_features.float().unflatten(1, (reached.num_groups, -1)).flatten(2)
            sums = torch.stack([groups.sum(-1), groups.square().sum(-1)]).double()
            total = sums if total is None else total + sums
            count += groups.shape[-1]
        flow.features = flow.park(flow.features)
    return reached, None if total is None else total / count


def normalise(features: Tensor, norm: nn.GroupNorm, moments: Tensor) -> Tensor:
    """A group norm with statistics from elsewhere: mean and mean square, (2, B, groups)."""
    mean, square = moments
    deviation = (square - mean.square()).clamp(min=0).add(norm.eps).sqrt()
    grouped = features.float().unflatten(1, (norm.num_groups, -1))
    shape = (*mean.shape, 1, 1, 1)
    normed = ((grouped - mean.float().view(shape)) / deviation.float().view(shape)).flatten(1, 2)
    return (normed * norm.weight[:, None, None] + norm.bias[:, None, None]).to(features.dtype)


def join(flows: list[Flow], plan: list[tuple[slice, slice]], size: tuple[int, int], scale: int) -> Tensor:
    """The cores side by side, (B, C, h * scale, w * scale) float32; features become what the network gave."""
    first = flows[0].features
    joined = torch.empty(*first.shape[:2], size[0] * scale, size[1] * scale, device=first.device)
    for flow, (rows, columns) in zip(flows, plan, strict=True):
        place = slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)
        joined[..., place[0], place[1]] = flow.core_features.float()
    return joined


def encoder_steps(encoder: Any, flow: Flow) -> Steps:
    """diffusers' Encoder, stopping at every group norm."""
    flow.features = encoder.conv_in(flow.features)
    for block in encoder.down_blocks:
        for layer in block.resnets:
            yield from resnet_steps(layer, flow)
        for downsample in block.downsamplers or ():
            flow.features = downsample(flow.features)
    yield from mid_steps(encoder.mid_block, flow)
    yield from out_steps(encoder, flow)


def decoder_steps(decoder: Any, flow: Flow) -> Steps:
    """diffusers' Decoder, stopping at every group norm."""
    flow.features = decoder.conv_in(flow.features)
    yield from mid_steps(decoder.mid_block, flow)
    for block in decoder.up_blocks:
        for layer in block.resnets:
            yield from resnet_steps(layer, flow)
        for upsample in block.upsamplers or ():
            flow.features = upsample(flow.features)
    yield from out_steps(decoder, flow)


def mid_steps(block: Any, flow: Flow) -> Steps:
    yield from resnet_steps(block.resnets[0], flow)
    for attention, layer in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield from attention_steps(attention, flow)
        yield from resnet_steps(layer, flow)


def out_steps(network: Any, flow: Flow) -> Steps:
    yield network.conv_norm_out
    flow.features = network.conv_out(F.silu(flow.features))


def resnet_steps(layer: Any, flow: Flow) -> Steps:
    skip = flow.park(flow.features)
    yield layer.norm1
    flow.features = layer.conv1(F.silu(flow.features))
    yield layer.norm2
    features = layer.conv2(F.silu(flow.features))
    skip = skip.to(features.device)
    flow.features = features + (skip if layer.conv_shortcut is None else layer.conv_shortcut(skip))


def attention_steps(attention: Any, flow: Flow) -> Steps:
    skip = flow.park(flow.features)
    yield attention.group_norm
    height = flow.features.shape[-2]
    tokens = flow.features.flatten(2).transpose(1, 2)
    heads = (
        project(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    read = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    read = attention.to_out[0](read).transpose(1, 2).unflatten(2, (height, -1))
    flow.features = read + skip.to(read.device)
