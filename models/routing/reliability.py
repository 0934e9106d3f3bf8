"""Reliability: how far each modality's map can be trusted at each patch, from the LR image and the map itself.

NOT IN THE PAPER. Its router (Section 3.3) reads the LR image and U(x) and never the maps, so it cannot know that one is
damaged. Here one small head per modality looks at both and answers with log-odds rho: sigmoid(rho) is the rank, among
undamaged maps, that this map's agreement with the map of the undegraded photograph is expected to have, 0 worst and 1
best (`training.reliability`). They enter the router's logits:

    w = sigmoid(router + gain * (rho - centre))        the paper's, and where this is off: w = sigmoid(router)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.modalities.perception import ChannelNorm

PATCH = 4  # LR pixels per token side
CELL = 16  # pixels of a rendered map per token side
PARTS = 4  # cells of a rendered map per token side, whose mean and spread are read


@dataclass(frozen=True, kw_only=True)
class ReliabilityConfig:
    width: int = 48
    num_blocks: int = 3  # of the trunk that reads the LR image, shared by the heads
    token_channels: int = 128  # of the perception network, whose view of the LR image it starts from
    dino_channels: int = 64
    gain: float = 1.0  # of the log-odds in the router's logits; at 1 an even router's weight is the reliability itself
    modalities: tuple[str, ...] = ("segmentation", "depth", "edge", "dino")


class GridBlock(nn.Module):
    """Depthwise convolution and MLP on a grid of tokens (B, D, h, w), added to what came in."""

    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        self.norm = ChannelNorm(width)
        self.spatial = nn.Conv2d(width, width, 5, padding=2 * dilation, dilation=dilation, groups=width)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, grid: Tensor) -> Tensor:
        return grid + self.down(F.gelu(self.up(self.spatial(self.norm(grid)))))


class ReliabilityHead(nn.Module):
    """One modality: what is seen (B, T + D, h, w) and the trunk (B, D, h, w) of the image, cues (B, C, h, w) of the map
    -> log-odds (B, h, w), and the cues that it expected.

    From the image it first says what the map of the undegraded image should look like, and then compares: taught by
    right and wrong alone, the comparison is hardly learned.
    """

    def __init__(self, num_cues: int, config: ReliabilityConfig):
        super().__init__()
        width = config.width
        seen = config.token_channels + width
        self.expect = nn.Sequential(nn.Conv2d(seen, 96, 1), nn.GELU(), nn.Conv2d(96, num_cues, 1))
        self.enter = nn.Conv2d(2 * num_cues + 2, width, 1)
        self.spread = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.block = GridBlock(width)
        self.answer = nn.Conv2d(width, 1, 1)

    def forward(self, seen: Tensor, trunk: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        expected = self.expect(seen)
        difference, product = (cues - expected).abs(), cues * expected
        told = [cues, difference, difference.mean(1, keepdim=True), product.mean(1, keepdim=True)]
        entered = F.gelu(self.enter(torch.cat(told, 1)))
        joined = self.join(torch.cat([entered + self.spread(entered), trunk], 1))
        return self.answer(self.block(joined))[:, 0], expected


class ModalityReliability(nn.Module):
    """LR image (B, 3, H, W) in [0, 1], the perception network's tokens (B, T, H/4, W/4) of it, and modalities as the
    fusion takes them -> log-odds (B, H/4, W/4) per modality.

    Heads see no other modality's map: damage to one changes one. Text has no map, and no reliability.
    """

    centre: Tensor

    def __init__(self, config: ReliabilityConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(3, width // 2, 3, stride=2, padding=1)
        self.down = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.look = nn.Conv2d(config.token_channels, width, 1)
        dilations = (1, 2, 4)
        self.trunk = nn.Sequential(*(GridBlock(width, dilations[k % 3]) for k in range(config.num_blocks)))
        self.heads = nn.ModuleDict({name: ReliabilityHead(self.num_cues(name), config) for name in config.modalities})
        self.register_buffer("centre", torch.zeros(len(config.modalities)))  # set once, after training

    def num_cues(self, name: str) -> int:
        channels = 3 if name == "segmentation" else 1
        return self.config.dino_channels + 1 if name == "dino" else channels * (PARTS**2 + 1)

    def forward(self, lr_image: Tensor, tokens: Tensor, modalities: dict[str, Tensor]) -> dict[str, Tensor]:
        """Log-odds of the modalities given, before any centre."""
        return {name: log_odds for name, (log_odds, _) in self.judge(lr_image, tokens, modalities).items()}

    def judge(
        self, lr_image: Tensor, tokens: Tensor, modalities: dict[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Per modality given: log-odds (B, h, w), and the `map_cues` (B, C, h, w) that the image led it to expect."""
        # pixels tell noise, blur, compression and where an edge is; tokens what is seen there
        pixels = self.down(F.gelu(self.stem(lr_image - 0.5)))
        trunk = self.trunk(F.gelu(pixels + self.look(tokens)))
        seen = torch.cat([tokens, pixels], 1)
        return {name: self.heads[name](seen, trunk, map_cues(name, m)) for name, m in modalities.items()}

    def offsets(self, lr_image: Tensor, tokens: Tensor, modalities: dict[str, Tensor]) -> dict[str, Tensor]:
        """What joins the router's logits, (B, H/4, W/4) per modality given: around 0 over undamaged maps."""
        places = {name: m for m, name in enumerate(self.config.modalities)}
        return {
            name: self.config.gain * (log_odds - self.centre[places[name]])
            for name, log_odds in self(lr_image, tokens, modalities).items()
        }


def map_cues(name: str, modality: Tensor) -> Tensor:
    """What a head sees of a map, per token: DINO features as unit vectors and their length; of a rendered map the
    means of 4 x 4 cells and the spread of the pixels within them, (B, C, rows, columns).
    """
    if name == "dino":
        length = modality.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return torch.cat([8 * modality / length, length.log()], 1)
    # depth and edges are grey: three times the same
    values = modality if name == "segmentation" else modality[:, :1]
    side = CELL // PARTS
    means = F.avg_pool2d(values, side)
    variance = F.avg_pool2d(F.avg_pool2d(values.square(), side) - means.square(), PARTS)
    return torch.cat([2 * F.pixel_unshuffle(means, PARTS) - 1, 4 * variance.clamp_min(1e-8).sqrt()], 1)
