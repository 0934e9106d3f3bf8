"""RAM as far as SeeSR needs it: a Swin image encoder, a projection to 512 features, and a head that scores each tag.

Dimension key: B batch  H W pixels  P image tokens  T tags  D width of the head
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]


@dataclass(frozen=True, kw_only=True)
class TaggerConfig:
    """Sizes; the defaults are ram_swin_large_14m's. Its checkpoint holds no configuration."""

    image_size: int = 384
    window: int = 12
    embed_dim: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (6, 12, 24, 48)
    image_width: int = 512
    """Features of one image token: the soft prompt's."""
    num_tags: int = 4585
    head_width: int = 768
    head_heads: int = 4
    head_layers: int = 2
    head_mlp: int = 3072

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads):
            raise ValueError("depths and num_heads must be of one length")
        if self.image_size % (4 * 2 ** (len(self.depths) - 1) * self.window):
            # Then no stage needs padding, which the two Swin implementations do not do alike.
            raise ValueError(f"windows of {self.window} do not tile every stage of {self.image_size} pixels")

    @property
    def feature_width(self) -> int:
        """Of the last stage of the encoder: every stage but the first doubles the features."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)


class TagLayer(nn.Module):
    """One layer of the head: each tag (B, T, D) reads the image tokens. Tags do not see each other."""

    def __init__(self, config: TaggerConfig):
        super().__init__()
        width, image_width = config.head_width, config.image_width
        self.attention = nn.MultiheadAttention(
            width, config.head_heads, kdim=image_width, vdim=image_width, batch_first=True
        )
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.hidden = nn.Linear(width, config.head_mlp)
        self.output = nn.Linear(config.head_mlp, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tags: Tensor, image_tokens: Tensor) -> Tensor:
        read, _ = self.attention(tags, image_tokens, image_tokens, need_weights=False)
        tags = self.attention_norm(tags + read)
        return self.output_norm(tags + self.output(F.gelu(self.hidden(tags))))


class Tagger(nn.Module):
    """Image (B, 3, any, any) in [0, 1] -> image tokens and a score for each tag."""

    def __init__(self, encoder: Any, config: TaggerConfig):
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.image_proj = nn.Linear(config.feature_width, config.image_width)
        self.label_embed = nn.Parameter(torch.zeros(config.num_tags, config.image_width))
        self.wordvec_proj = nn.Linear(config.image_width, config.head_width)
        self.layers = nn.ModuleList(TagLayer(config) for _ in range(config.head_layers))
        self.fc = nn.Linear(config.head_width, 1)

    def image_tokens(self, image: Tensor) -> Tensor:
        """(B, 1 + P, 512): the mean of all, then the patches row by row; P is 144 at 384 px. SeeSR's soft prompt.

        The image is brought to a square without antialiasing, as the released code did it on tensors at its time.
        """
        size = (self.config.image_size,) * 2
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        mean, deviation = (image.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        pixels = ((image - mean) / deviation).to(self.image_proj.weight.dtype)
        features = self.encoder(pixels).last_hidden_state
        return self.image_proj(torch.cat([features.mean(1, keepdim=True), features], 1))

    def scores(self, image_tokens: Tensor) -> Tensor:
        """(B, T) in (0, 1), one per tag, from the tokens of `image_tokens`."""
        tags = self.wordvec_proj(self.label_embed).relu().expand(len(image_tokens), -1, -1)
        for layer in self.layers:
            tags = layer(tags, image_tokens)
        return self.fc(tags)[..., 0].sigmoid()


def build_encoder(config: TaggerConfig, state: dict[str, Tensor] | None = None) -> Any:
    """transformers' Swin of these sizes: random, or from weights under the names of the hub's Swin checkpoints.

    Raises ValueError when the weights do not fit.
    """
    from transformers import SwinConfig, SwinModel

    swin = SwinConfig(
        image_size=config.image_size,
        patch_size=4,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.window,
    )
    if state is None:
        return SwinModel(swin, add_pooling_layer=False)
    # The library's own loader, because the names inside its Swin have changed between versions and those of
    # checkpoints have not. Version 4 also wants the table of places from the checkpoint, else it holds noise.
    with torch.device("meta"):
        names = SwinModel(swin, add_pooling_layer=False).state_dict()
    tables = dict.fromkeys((n for n in names if n.endswith("relative_position_index")), places(config.window))
    state = state | tables
    encoder, info = SwinModel.from_pretrained(
        None, config=swin, state_dict=state, add_pooling_layer=False, output_loading_info=True
    )
    problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(problems.values()):
        told = "; ".join(f"{kind} {', '.join(names[:3])}" for kind, names in problems.items() if names)
        raise ValueError(f"the image encoder's weights do not fit: {told}")
    return encoder


def places(window: int) -> Tensor:
    """(window^2, window^2): where a pair of pixels of a window finds its bias in the table of relative positions."""
    axis = torch.arange(window)
    row, column = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    down, right = (place[:, None] - place[None, :] + window - 1 for place in (row, column))
    return down * (2 * window - 1) + right
