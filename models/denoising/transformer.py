"""The denoiser: DiT4SR's diffusion transformer with a fourth token group for what the modalities say.

Dimension key: B batch  C channels  h w latent grid  P patches  L text tokens  J text features  D width
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.denoising.attention import Groups, JointAttention
from models.denoising.blocks import JointBlock, Modulation, modulate, normalise
from models.denoising.config import DenoiserConfig
from models.denoising.embeddings import PatchEmbed, TimeTextEmbed
from models.denoising.initialisation import initialise_for_training
from models.denoising.linear import Linear


class DiffusionTransformer(nn.Module):
    """Predicts the velocity (noise minus clean latent), guided by LR image, text and modalities.

    Structure and state-dict names are those of DiT4SR (SD3.5 with "control" projections), so published files
    load; the fused group (M3ESR section 3.2) adds the projections `*_fused`. Without fused tokens the group
    is absent, not zero (zero tokens would still take part in the softmax): the network is DiT4SR exactly.
    """

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        self.is_checkpointed = False
        width = config.width
        self.pos_embed = PatchEmbed(
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            width=width,
            max_size=config.pos_embed_max_size,
            base_size=config.sample_size // config.patch_size,
        )
        self.time_text_embed = TimeTextEmbed(config.pooled_projection_dim, width)
        self.context_embedder = Linear(config.joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(JointBlock(config, i) for i in range(config.num_layers))
        self.norm_out = Modulation(width, 2)
        self.proj_out = Linear(width, config.patch_size**2 * config.out_channels)

    def forward(self, noisy_latent: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Velocity (B, C, h, w); arguments and errors are those of `features`."""
        return self.to_latent(self.features(noisy_latent, *arguments, **options), noisy_latent)

    def features(
        self,
        noisy_latent: Tensor,
        lr_latent: Tensor,
        text_embeddings: Tensor,
        pooled: Tensor,
        timestep: Tensor,
        fused_tokens: Tensor | None = None,
        *,
        position_offset: tuple[int, int] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """What the velocity at the noise level `timestep` is read from: (B, P, D), one per patch.

        Args:
            noisy_latent: (B, C, h, w), any sides; odd ones too.
            lr_latent: (B, C, h, w), the encoded upscaled LR image on the same grid.
            text_embeddings: (B, L, J); L may be anything from 1.
            pooled: (B, pooled_projection_dim).
            timestep: (B,) = 1000 * sigma, fractions welcome.
            fused_tokens: (B, P, D) from the fusion (Eq. 14), or None for no modalities.
            position_offset: (row, col) in tokens of this crop in the position table; default its centre.
            record: filled, if given, with every stream after every block (`block0.image`, ...).

        Raises:
            ValueError: shapes that do not belong together, or fused tokens without the parameters for them.
        """
        self.check_shapes(noisy_latent, lr_latent, fused_tokens)
        height, width = noisy_latent.shape[-2:]
        grid = self.pos_embed.grid(height, width)
        condition = self.time_text_embed(timestep, pooled)
        groups = Groups(
            noisy=self.embed_latent(noisy_latent, position_offset),
            lr=self.embed_latent(lr_latent, position_offset),
            fused=fused_tokens,
            text=self.context_embedder(text_embeddings),
        )
        if record is not None:
            record |= {"embed.image": groups.noisy, "embed.control": groups.lr}
            record |= {"temb": condition, "context_embedded": groups.text}
        activated = F.silu(condition)
        for i, block in enumerate(self.transformer_blocks):
            arguments = groups, activated, grid, not block.is_last or record is not None
            if self.is_checkpointed and torch.is_grad_enabled():
                groups = checkpoint(block, *arguments, use_reentrant=False)
            else:
                groups = block(*arguments)
            if record is not None:
                record |= name_streams(i, groups)
        scale, shift = self.norm_out(activated)
        return modulate(normalise(groups.noisy), scale, shift)

    def to_latent(self, tokens: Tensor, noisy_latent: Tensor) -> Tensor:
        """Features (B, P, D) -> the velocity (B, C, h, w), of the noisy latent's shape."""
        height, width = noisy_latent.shape[-2:]
        return self.assemble(self.proj_out(tokens), self.pos_embed.grid(height, width))[..., :height, :width]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.proj_out.bias.dtype

    def embed_latent(self, latent: Tensor, position_offset: tuple[int, int] | None = None) -> Tensor:
        """(B, C, h, w) -> (B, P, D): patches with positions. Of the LR latent this is z in Eq. 14."""
        return self.pos_embed(latent, position_offset)

    def time_embedding(self, timestep: Tensor) -> Tensor:
        """(B,) = 1000 * sigma -> (B, D), free of text; the temperatures (Eq. 15) read it."""
        return self.time_text_embed.time(timestep)

    def assemble(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P, p*p*C) -> (B, C, h, w)."""
        p = self.config.patch_size
        patches = tokens.unflatten(-1, (p, p, -1)).unflatten(1, grid)  # (B, rows, cols, p, p, C)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def check_shapes(self, noisy_latent: Tensor, lr_latent: Tensor, fused_tokens: Tensor | None) -> None:
        if noisy_latent.shape[-2:] != lr_latent.shape[-2:]:
            raise ValueError(
                f"noisy latent {tuple(noisy_latent.shape[-2:])} and LR latent {tuple(lr_latent.shape[-2:])} "
                "must lie on the same grid"
            )
        if fused_tokens is None:
            return
        if not self.config.fused:
            raise ValueError("fused tokens need a denoiser built with fused=True")
        h, w = self.pos_embed.grid(*noisy_latent.shape[-2:])
        if fused_tokens.shape[1:] != (h * w, self.config.width):
            given, needed = tuple(fused_tokens.shape[1:]), (h * w, self.config.width)
            raise ValueError(f"fused tokens {given} must be one per patch: {needed}")

    def checkpoint_blocks(self) -> None:
        """For training in less memory: only the streams between blocks are kept, the rest is computed twice."""
        self.is_checkpointed = True

    def drop_dead_weights(self) -> None:
        """Deletes what published files carry and no output depends on: 4.6 % of dit4sr_r1, 7.8 % of dit4sr_q.

        The text projections of every second attention, the text queries of the last block, and the LR keys that
        `orig` never reads. Afterwards the network runs and trains as before, but its state dict is no longer complete.
        """
        for block in self.transformer_blocks:
            block.attn.drop_dead_weights(has_text=True)
            if block.attn2 is not None:
                block.attn2.drop_dead_weights(has_text=False)

    def merge_projections(self) -> None:
        """For inference: one projection per group and attention instead of three to six. See `JointAttention`."""
        for block in self.transformer_blocks:
            block.ff.arrange()
            block.attn.merge_projections(has_text=True)
            if block.attn2 is not None:
                block.attn2.merge_projections(has_text=False)

    def pack_for_cpu(self) -> None:
        """For inference on a CPU, after everything else was done to the weights. See `Linear.pack`."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()

    def init_fused_from_control(self) -> None:
        """Copies the LR group's projections into the fused group's: fusion training starts from there."""
        for module in self.modules():
            if isinstance(module, JointAttention):
                module.init_fused_from_control()

    @torch.no_grad()
    def reset_for_training(self) -> None:
        """Start values for training from nothing (`initialise_for_training`); the first velocity is zero."""
        initialise_for_training(self, self.config.control_conv_scale)
        nn.init.zeros_(self.proj_out.weight)


def name_streams(index: int, groups: Groups) -> dict[str, Tensor]:
    names = ("image", "control", "fused", "context")
    return {f"block{index}.{name}": group for name, group in zip(names, groups, strict=True) if group is not None}
