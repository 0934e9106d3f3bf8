"""One transformer block: modulation, joint attention, and the MLP in which LR patches correct noisy ones.

Dimension key: B batch  P patches of an h x w grid  L text tokens  D width
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.denoising.attention import Groups, JointAttention
from models.denoising.config import DenoiserConfig
from models.denoising.linear import Linear

MLP_RATIO = 4


def normalise(x_BTD: Tensor) -> Tensor:
    """Layer norm without weights: the modulation supplies them."""
    return F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=1e-6)


def modulate(normed_BTD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
    return torch.addcmul(shift_B1D, normed_BTD, 1 + scale_B1D)


class Modulation(nn.Module):
    """`num_chunks` vectors (B, 1, D) read from the activated time-and-text embedding."""

    def __init__(self, width: int, num_chunks: int):
        super().__init__()
        self.num_chunks = num_chunks
        self.linear = nn.Linear(width, num_chunks * width)

    def forward(self, condition_BD: Tensor) -> list[Tensor]:
        return list(self.linear(condition_BD)[:, None].chunk(self.num_chunks, dim=-1))


class GeluProjection(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = Linear(width, hidden, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class FeedForward(nn.Module):
    """D -> 4D -> D. The image one also owns the convolution that carries LR detail into the noisy group."""

    def __init__(self, width: int, *, with_control: bool):
        super().__init__()
        hidden = MLP_RATIO * width
        # the gap at index 1 is the dropout of the published layout
        self.net = nn.ModuleList([GeluProjection(width, hidden), nn.Identity(), Linear(hidden, width)])
        if with_control:
            self.control_conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
            self.arrange()

    def arrange(self) -> None:
        """Lays the convolution's weight out as `injection` lays out its image; after weights were assigned, again.

        Else the convolution copies its input and output, which on a CPU takes far longer than itself.
        """
        self.control_conv.to(memory_format=torch.channels_last)

    def hidden(self, x_BTD: Tensor) -> Tensor:
        return self.net[0](x_BTD)

    def output(self, hidden: Tensor) -> Tensor:
        return self.net[2](hidden)

    def injection(self, hidden_lr: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the LR group says about each place of the h x w `grid` and its eight neighbours."""
        # (B, P, 4D) seen as an image is already channels-last memory: both reshapes are free
        image = hidden_lr.unflatten(1, grid).permute(0, 3, 1, 2)
        return self.control_conv(image).permute(0, 2, 3, 1).flatten(1, 2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output(self.hidden(x_BTD))


class JointBlock(nn.Module):
    """Updates all groups; after the last block only the noisy group is read, so only it is finished there."""

    def __init__(self, config: DenoiserConfig, index: int):
        super().__init__()
        width = config.width
        self.is_last = index == config.num_layers - 1
        self.control_conv_scale = config.control_conv_scale
        is_dual = index in config.dual_attention_layers
        self.norm1 = Modulation(width, 9 if is_dual else 6)
        self.norm1_context = Modulation(width, 2 if self.is_last else 6)
        self.attn = JointAttention(config, is_last=self.is_last)
        self.attn2 = JointAttention(config, is_last=self.is_last) if is_dual else None
        self.ff = FeedForward(width, with_control=True)
        self.ff_context = None if self.is_last else FeedForward(width, with_control=False)

    def forward(self, groups: Groups, condition_BD: Tensor, grid: tuple[int, int], finish_lr: bool = True) -> Groups:
        """`condition_BD` is SiLU(time-and-text embedding); `grid` = (h, w) tokens with h * w = P.

        `finish_lr=False` leaves out the LR group's MLP output: nothing reads it after the last block.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *dual = self.norm1(condition_BD)
        image = Groups(groups.noisy, groups.lr, groups.fused, None)
        normed = each(normalise, image)
        text, text_gates = self.modulate_text(groups.text, condition_BD)
        read = self.attn(each(lambda x: modulate(x, scale, shift), normed)._replace(text=text))
        image = add_gated(image, gate, read)
        if self.attn2 is not None:
            # reads the block's input, not what the first attention made of it
            shift_dual, scale_dual, gate_dual = dual
            dual_read = self.attn2(each(lambda x: modulate(x, scale_dual, shift_dual), normed))
            image = add_gated(image, gate_dual, dual_read)
        modulated = each(lambda x: modulate(normalise(x), scale_mlp, shift_mlp), image)
        image = add_gated(image, gate_mlp, self.feed_forward(modulated, grid, finish_lr))
        return image._replace(text=self.update_text(groups.text, read.text, text_gates))

    def feed_forward(self, image: Groups, grid: tuple[int, int], finish_lr: bool) -> Groups:
        hidden_lr = self.ff.hidden(image.lr)
        # The paper does not say whether fused tokens are injected here too. They are not: they are a second
        # reading of the same LR patches, and an absent group must leave this sum as DiT4SR has it.
        injected = self.ff.injection(hidden_lr, grid)
        # in place: the activation's gradient does not read its output
        hidden_noisy = self.ff.hidden(image.noisy).add_(injected, alpha=self.control_conv_scale)
        return Groups(
            self.ff.output(hidden_noisy),
            self.ff.output(hidden_lr) if finish_lr else None,
            None if image.fused is None else self.ff(image.fused),
            None,
        )

    def modulate_text(self, text_BLD: Tensor, condition_BD: Tensor) -> tuple[Tensor, list[Tensor]]:
        if self.is_last:  # text only answers here; mind the order, it differs from the six
            scale, shift = self.norm1_context(condition_BD)
            return modulate(normalise(text_BLD), scale, shift), []
        shift, scale, *gates = self.norm1_context(condition_BD)
        return modulate(normalise(text_BLD), scale, shift), gates

    def update_text(self, text_BLD: Tensor, read_BLD: Tensor | None, gates: list[Tensor]) -> Tensor | None:
        if self.ff_context is None or read_BLD is None:
            return None
        gate, shift_mlp, scale_mlp, gate_mlp = gates
        text_BLD = torch.addcmul(text_BLD, gate, read_BLD)
        return torch.addcmul(text_BLD, gate_mlp, self.ff_context(modulate(normalise(text_BLD), scale_mlp, shift_mlp)))


def each(function: Callable[[Tensor], Tensor], groups: Groups) -> Groups:
    """Applies `function` to every group that is there."""
    return Groups(*(None if group is None else function(group) for group in groups))


def add_gated(groups: Groups, gate_B1D: Tensor, update: Groups) -> Groups:
    """A group without an update is needed no more and drops out."""
    return Groups(
        *(
            None if x is None or change is None else torch.addcmul(x, gate_B1D, change)
            for x, change in zip(groups, update, strict=True)
        )
    )
