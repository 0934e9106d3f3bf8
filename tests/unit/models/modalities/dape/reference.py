"""RAM written out once more, straight from its key names, to hold the real one against. Slow and plain on purpose."""

import math

import torch
import torch.nn.functional as F


def linear(state, name, value):
    return value @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))


def norm(state, name, value, eps=1e-5):
    return F.layer_norm(value, value.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def window_attention(state, name, grid, heads, window, shift):
    """Attention inside windows of a (rows, columns, width) grid, shifted cyclically; window by window, head by head."""
    rows, columns, width = grid.shape
    table = state[f"{name}.relative_position_bias_table"]
    rolled = torch.roll(grid, (-shift, -shift), (0, 1))
    # a window at the border holds parts of the picture that are not neighbours; they do not see each other
    area = torch.zeros(rows, columns)
    for i, row in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None)) if shift else ()):
        for j, column in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
            area[row, column] = 3 * i + j
    result = torch.zeros_like(grid)
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            place = slice(top, top + window), slice(left, left + window)
            tokens, areas = rolled[place].reshape(-1, width), area[place].reshape(-1)
            query, key, value = linear(state, f"{name}.qkv", tokens).chunk(3, -1)
            places = [(y, x) for y in range(window) for x in range(window)]
            index = [
                [(a[0] - b[0] + window - 1) * (2 * window - 1) + a[1] - b[1] + window - 1 for b in places]
                for a in places
            ]
            bias = table[torch.tensor(index)]
            apart = -100.0 * (areas[:, None] != areas[None, :])
            read = []
            for head, (q, k, v) in enumerate(zip(*(t.chunk(heads, -1) for t in (query, key, value)), strict=True)):
                read.append((q @ k.T / math.sqrt(width // heads) + bias[..., head] + apart).softmax(-1) @ v)
            result[place] = torch.cat(read, -1).reshape(window, window, width)
    return linear(state, f"{name}.proj", torch.roll(result, (shift, shift), (0, 1)))


def swin(state, pixels, config):
    """(3, side, side) normalised -> (patches, width)."""
    grid = F.conv2d(pixels[None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)[0]
    grid = norm(state, "patch_embed.norm", grid.permute(1, 2, 0))
    for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            shift = config.window // 2 if j % 2 and grid.shape[0] > config.window else 0
            attended = norm(state, f"{block}.norm1", grid)
            grid = grid + window_attention(state, f"{block}.attn", attended, heads, config.window, shift)
            hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", grid)))
            grid = grid + linear(state, f"{block}.mlp.fc2", hidden)
        if i < len(config.depths) - 1:
            parts = [grid[0::2, 0::2], grid[1::2, 0::2], grid[0::2, 1::2], grid[1::2, 1::2]]
            merged = norm(state, f"layers.{i}.downsample.norm", torch.cat(parts, -1))
            grid = linear(state, f"layers.{i}.downsample.reduction", merged)
    return norm(state, "norm", grid).flatten(0, 1)


def scores(state, tokens, config):
    """(image tokens, 512) -> (tags,) in (0, 1)."""
    tags = linear(state, "wordvec_proj", state["label_embed"]).relu()
    for i in range(config.head_layers):
        layer = f"tagging_head.encoder.layer.{i}"
        query = linear(state, f"{layer}.crossattention.self.query", tags)
        key = linear(state, f"{layer}.crossattention.self.key", tokens)
        value = linear(state, f"{layer}.crossattention.self.value", tokens)
        width = config.head_width // config.head_heads
        read = [
            (q @ k.T / math.sqrt(width)).softmax(-1) @ v
            for q, k, v in zip(*(t.chunk(config.head_heads, -1) for t in (query, key, value)), strict=True)
        ]
        read = linear(state, f"{layer}.crossattention.output.dense", torch.cat(read, -1))
        tags = norm(state, f"{layer}.crossattention.output.LayerNorm", tags + read, 1e-12)
        hidden = F.gelu(linear(state, f"{layer}.intermediate.dense", tags))
        tags = norm(state, f"{layer}.output.LayerNorm", tags + linear(state, f"{layer}.output.dense", hidden), 1e-12)
    return linear(state, "fc", tags)[:, 0].sigmoid()
