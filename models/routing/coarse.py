"""The coarse super-resolver of `compact`: a residual U-Net on the LR grid, trained by this project.

It plays the part that Real-ESRGAN plays in the paper (Section 3.3): its difference to plain upscaling is the
uncertainty map (Eq. 13). It is also where the sampler starts. Real-ESRGAN's own networks are in `realesrgan.py`.
The same U-Net, shown more than the LR image, draws the details of each denoising step (`M3ESR.draw`).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.resize import resize

MARGIN = 8  # LR pixels around the image
TOKEN = 4  # LR pixels a side of one of the denoiser's tokens


@dataclass(frozen=True, kw_only=True)
class CoarseConfig:
    """Sizes of the coarse network; level k works on the LR grid reduced by 2**k."""

    widths: tuple[int, ...] = (32, 64, 128)
    num_blocks: tuple[int, ...] = (1, 2, 4)  # per level, on the way down; the way up has as many, the last level once
    scale: int = 4
    has_consistency: bool = False  # a learned share of what the answer misses of the LR image is added back
    num_guides: int = 0  # images of SR size that it is shown beside the LR image
    token_width: int = 0  # features per token of 4 LR pixels a side, joined at the lowest level; 0: none


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))): the last convolution starts at zero, so a fresh network is the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, padding_mode="zeros")
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, padding_mode="zeros")
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv1.bias)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


def blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))


class CoarseNetwork(nn.Module):
    """LR image (B, 3, H, W) in [0, 1] -> coarse SR image (B, 3, 4H, 4W); any H and W, not clamped.

    The answer is the bicubic upscale plus a learned residual, so a fresh network is bicubic upscaling. With
    `has_consistency` it is then corrected by `reconcile`. Guides and tokens join through layers that start at zero, so
    a network that was trained without them begins as itself.
    """

    def __init__(self, config: CoarseConfig):
        super().__init__()
        self.config = config
        widths, counts = config.widths, config.num_blocks
        self.head = nn.Conv2d(3, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(blocks(w, n) for w, n in zip(widths[:-1], counts[:-1], strict=True))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.bottom = blocks(widths[-1], counts[-1])
        self.ups = nn.ModuleList(nn.Conv2d(b, a * 4, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(blocks(w, n) for w, n in zip(widths[:-1], counts[:-1], strict=True))
        # behind the residual's sub-pixels, one channel says how much of the LR pixel is to be believed
        self.tail = nn.Conv2d(widths[0], 3 * config.scale**2 + config.has_consistency, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)
        scale = config.scale
        self.look = nn.Conv2d(3 * scale**2 * config.num_guides, widths[0], 3, padding=1) if config.num_guides else None
        self.listen = nn.Conv2d(config.token_width, widths[-1], 1) if config.token_width else None
        if config.token_width and 2 ** len(self.downs) != TOKEN:
            raise ValueError(f"tokens of {TOKEN} LR pixels join at level 2, the lowest here is {len(self.downs)}")
        for layer in (self.look, self.listen):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        lr_image: Tensor,
        margin: int = MARGIN,
        guides: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """One SR image. Of a network built for guides and tokens each may be left out: it is told nothing then.

        Args:
            margin: LR pixels by which everything is continued at its border, else the zeros that the convolutions see
                there would darken a frame around it. Training goes without: it would only compute more.
            guides: (B, 3 num_guides, 4H, 4W), about zero.
            tokens: (B, token_width, H/4, W/4); H and W must be multiples of 4, and `margin` too.
        """
        height, width = lr_image.shape[-2:]
        multiple, scale = 2 ** len(self.downs), self.config.scale
        sides = (margin, margin + -width % multiple, margin, margin + -height % multiple)
        if guides is not None:
            guides = F.pad(F.pixel_unshuffle(guides, scale), sides, mode="replicate")
        if tokens is not None:
            tokens = F.pad(tokens, (margin // TOKEN,) * 4, mode="replicate")
        features = self.features(F.pad(lr_image, sides, mode="replicate") - 0.5, guides, tokens)
        answer = self.tail(features)[..., margin : margin + height, margin : margin + width]
        sub_pixels = 3 * scale**2
        sr_image = upscale(lr_image, scale) + F.pixel_shuffle(answer[:, :sub_pixels], scale)
        if not self.config.has_consistency:
            return sr_image
        return reconcile(sr_image, lr_image, answer[:, sub_pixels:].float().tanh())

    def features(self, x: Tensor, guides: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        """(B, 3, H, W), sides divisible by 2 per level -> (B, widths[0], H, W); guides and tokens on its grids."""
        x = self.head(x)
        if guides is not None and self.look is not None:
            x = x + self.look(guides)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        if tokens is not None and self.listen is not None:
            x = x + self.listen(tokens)
        x = self.bottom(x)
        for up, decoder in zip(reversed(self.ups), reversed(self.decoders), strict=True):
            x = decoder(F.pixel_shuffle(up(x), 2) + skips.pop())
        return x


def reconcile(sr_image: Tensor, lr_image: Tensor, trust: Tensor | float) -> Tensor:
    """One step of iterative back-projection (Irani and Peleg 1991): what the reduced SR image misses is added.

    sr_image (B, 3, sH, sW), lr_image (B, 3, H, W), `trust` (B, 1, H, W) or one for all, in [-1, 1]: 1 where the LR
    pixel is clean and must be met, 0 where it is noise. Ours: the paper has no such step.
    """
    scale = sr_image.shape[-1] // lr_image.shape[-1]
    return sr_image + upscale(trust * missed(sr_image, lr_image), scale)


def missed(sr_image: Tensor, lr_image: Tensor) -> Tensor:
    """The LR image (B, 3, H, W) less the reduced SR image (B, 3, sH, sW): what the SR image left out, noise or not."""
    return lr_image - resize(sr_image, (lr_image.shape[-2], lr_image.shape[-1]))


def upscale(lr_image: Tensor, scale: int) -> Tensor:
    """Bicubic upscaling (a = -0.5, as Pillow's), the Up-Scale of Eq. 13: (B, 3, H, W) -> (B, 3, sH, sW)."""
    return F.interpolate(lr_image, scale_factor=scale, mode="bicubic", antialias=True, align_corners=False)
