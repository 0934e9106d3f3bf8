"""What enters the transformer: latent patches with their positions, the timestep and the pooled text.

Dimension key: B batch  C channels  h w latent grid  P patches (tokens)  D width
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FREQUENCIES = 128  # of the timestep; cosine and sine make 256 features


def sinusoid(timestep_B: Tensor) -> Tensor:
    """(B,) in [0, 1000] -> (B, 256) float32, cosines first; fractional timesteps are welcome."""
    steps = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device=timestep_B.device)
    frequencies = torch.exp(-math.log(10000.0) / NUM_FREQUENCIES * steps)
    angles = timestep_B.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def axis_positions(max_size: int, base_size: int, width: int) -> Tensor:
    """(max_size, width) sine-cosine code of one coordinate, counted in `base_size`-ths of the table."""
    # float64, because far corners of a 384-token table lose their last digits in float32
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    coordinates = torch.arange(max_size, dtype=torch.float64) / (max_size / base_size)
    angles = coordinates[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


class PatchEmbed(nn.Module):
    """Cuts a latent into patches and adds where each one lies."""

    def __init__(self, *, patch_size: int, in_channels: int, width: int, max_size: int, base_size: int):
        super().__init__()
        self.patch_size, self.max_size, self.base_size, self.width = patch_size, max_size, base_size, width
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.register_buffer("pos_embed", self.position_table())  # persistent: published files carry it

    def position_table(self) -> Tensor:
        """(1, max_size * max_size, D); the first D/2 features code the column, the last D/2 the row."""
        axis = axis_positions(self.max_size, self.base_size, self.width // 2)
        columns, rows = (
            axis[None, :].expand(self.max_size, -1, -1),
            axis[:, None].expand(-1, self.max_size, -1),
        )
        return torch.cat([columns, rows], dim=-1).reshape(1, self.max_size**2, self.width)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens down and across for a latent of `height` x `width`; a begun patch counts as one.

        Raises:
            ValueError: the grid is larger than the position table.
        """
        h, w = math.ceil(height / self.patch_size), math.ceil(width / self.patch_size)
        if max(h, w) > self.max_size:
            raise ValueError(f"{h} x {w} tokens exceed the {self.max_size} x {self.max_size} position table")
        return h, w

    def positions(self, h: int, w: int, offset: tuple[int, int] | None = None) -> Tensor:
        """(1, h*w, D): the crop of the table that starts at `offset` (row, col), by default its centre."""
        row, col = offset if offset is not None else ((self.max_size - h) // 2, (self.max_size - w) // 2)
        if not (0 <= row <= self.max_size - h and 0 <= col <= self.max_size - w):
            raise ValueError(
                f"position_offset ({row}, {col}) puts {h} x {w} tokens outside the "
                f"{self.max_size} x {self.max_size} table"
            )
        table = self.pos_embed.view(self.max_size, self.max_size, -1)
        return table[row : row + h, col : col + w].reshape(1, h * w, -1)

    def forward(self, latent: Tensor, position_offset: tuple[int, int] | None = None) -> Tensor:
        """(B, C, h, w) -> (B, P, D), row by row; a begun patch at the border repeats the edge.

        The released code drops what does not fill a patch and then fails on the difference in size.
        """
        height, width = latent.shape[-2:]
        h, w = self.grid(height, width)
        missing = h * self.patch_size - height, w * self.patch_size - width
        if any(missing):
            latent = F.pad(latent, (0, missing[1], 0, missing[0]), mode="replicate")
        # Every stream that follows takes over this memory layout: features of a token side by side.
        tokens = self.proj(latent).flatten(2).transpose(1, 2).contiguous()
        return tokens + self.positions(h, w, position_offset)

    def keep_centre(self, side: int) -> None:
        """Cuts the position table down to about its middle `side` x `side` tokens, for good.

        Centred grids read the same numbers as before. The published table has 384 x 384 places, 452 MB in half
        precision, of which tiles of 64 latent cells read 32 x 32.
        """
        side += (self.max_size - side) % 2  # else the middle would move by half a token
        if side >= self.max_size:
            return
        start = (self.max_size - side) // 2
        table = self.pos_embed.view(self.max_size, self.max_size, -1)
        self.pos_embed = table[start : start + side, start : start + side].reshape(1, side**2, -1).clone()
        self.max_size = side


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, in_features: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class TimeTextEmbed(nn.Module):
    """The vector that modulates every block: how noisy the input is, and what the text says as a whole."""

    def __init__(self, pooled_dim: int, width: int):
        super().__init__()
        self.timestep_embedder = EmbeddingMLP(2 * NUM_FREQUENCIES, width)
        self.text_embedder = EmbeddingMLP(pooled_dim, width)

    def time(self, timestep_B: Tensor) -> Tensor:
        """(B,) = 1000 * sigma -> (B, D)."""
        dtype = self.timestep_embedder.linear_1.weight.dtype
        return self.timestep_embedder(sinusoid(timestep_B).to(dtype))

    def forward(self, timestep_B: Tensor, pooled: Tensor) -> Tensor:
        return self.time(timestep_B) + self.text_embedder(pooled)
