"""The one frozen value that a denoiser is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Sizes of a `DiffusionTransformer`, named as in the published `config.json` of SD3.5 and DiT4SR."""

    sample_size: int
    """Side of the latent that positions were first trained on; it fixes their unit (see `PatchEmbed`)."""
    patch_size: int
    """Latent pixels per token side."""
    in_channels: int
    out_channels: int
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    """Features of one text token before the context embedder."""
    pooled_projection_dim: int
    pos_embed_max_size: int
    """Side of the position table in tokens: the largest grid that fits."""
    dual_attention_layers: tuple[int, ...] = ()
    """Blocks with a second attention among the image-like groups only."""
    qk_norm: Literal["rms_norm"] | None = "rms_norm"
    variant: Literal["orig", "r1"] = "r1"
    """Which released code the weights were trained with: `orig` (dit4sr_f, dit4sr_q) has no key of its own
    for the LR group. The published config.json does not tell them apart."""
    control_conv_scale: float = 1.2
    """Strength of the LR -> noisy injection inside the MLP; the released code hard-codes 1.2."""
    fused: bool = False
    """Whether the parameters of the fused group (paper section 3.2) exist."""

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 (sines of two coordinates)")
        if self.qk_norm not in (None, "rms_norm"):
            raise ValueError(f"qk_norm {self.qk_norm!r} is unknown; use 'rms_norm' or None")
        if self.variant not in ("orig", "r1"):
            raise ValueError(f"variant {self.variant!r} is unknown; use 'orig' or 'r1'")
        if outside := [i for i in self.dual_attention_layers if not 0 <= i < self.num_layers]:
            raise ValueError(f"dual_attention_layers {outside} are outside the {self.num_layers} layers")

    @property
    def width(self) -> int:
        """D, the features of one token."""
        return self.attention_head_dim * self.num_attention_heads

    @classmethod
    def from_published(cls, values: Mapping[str, Any], **overrides: Any) -> "DenoiserConfig":
        """Reads a published `config.json`; `overrides` add what it does not hold (`variant`, `fused`).

        Raises:
            ValueError: `caption_projection_dim` differs from heads x head width; no released code allows it.
        """
        known = {field.name for field in fields(cls)}
        taken = {name: value for name, value in values.items() if name in known} | overrides
        taken["dual_attention_layers"] = tuple(taken.get("dual_attention_layers", ()))
        config = cls(**taken)
        if (projected := values.get("caption_projection_dim", config.width)) != config.width:
            raise ValueError(f"caption_projection_dim {projected} must equal the width {config.width}")
        return config
