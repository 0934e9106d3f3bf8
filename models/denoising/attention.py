"""Joint attention of the token groups [X noisy ; L LR ; F fused ; C text], with DiT4SR's stacked projections.

Dimension key: B batch  P patches  L text tokens  T tokens of all groups  D width  N heads  K head width
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.denoising.config import DenoiserConfig
from models.denoising.linear import Linear

EPSILON = 1e-6
CONTROL_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


class Groups(NamedTuple):
    """One tensor per token group; None where the group is absent or its value is not needed."""

    noisy: Tensor  # (B, P, D)
    lr: Tensor | None  # (B, P, D)
    fused: Tensor | None  # (B, P, D)
    text: Tensor | None  # (B, L, D)


class QKNorm(nn.Module):
    """Root-mean-square norm over the width of each head."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x_BNTK: Tensor) -> Tensor:
        # the weight follows the input, so that a query is as wide as its value under autocast
        return F.rms_norm(x_BNTK, self.weight.shape, self.weight.to(x_BNTK.dtype), eps=EPSILON)


Normed = tuple[Tensor, nn.Module]  # (B, N, T, K) of a group, and the norm it is to pass


def normalise_and_join(parts: list[Normed]) -> Tensor:
    """The groups' tokens, each normed, side by side: (B, N, T, K), contiguous."""
    first = parts[0][0]
    has_norms = all(isinstance(norm, QKNorm) for _, norm in parts)
    if not has_norms or first.dtype != torch.float32 or first.device.type != "cpu" or torch.is_grad_enabled():
        return torch.cat([norm(x_BNTK) for x_BNTK, norm in parts], dim=2)
    # The same numbers in half the passes over memory: a CPU's rms_norm is one for each of its operations.
    joined = torch.cat([x_BNTK for x_BNTK, _ in parts], dim=2)
    length = torch.linalg.vector_norm(joined, dim=-1, keepdim=True)
    joined.mul_(length.square_().mul_(1 / joined.shape[-1]).add_(EPSILON).rsqrt_())
    for tokens, (_, norm) in zip(joined.split([x.shape[2] for x, _ in parts], dim=2), parts, strict=True):
        tokens.mul_(norm.weight)
    return joined


class JointAttention(nn.Module):
    """Every group asks, every group answers.

    The noisy group uses the backbone's image projections. The LR group stacks its own ("control") on top of
    them, the fused group likewise ("fused"). Without text it is the second attention of a dual block; it then
    still owns text projections, because the published files carry them, but never runs them.
    """

    def __init__(self, config: DenoiserConfig, *, is_last: bool):
        super().__init__()
        width, self.num_heads = config.width, config.num_attention_heads
        self.is_last = is_last
        self.lr_key_is_image_key = config.variant == "orig" and config.qk_norm is not None
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            setattr(self, name, Linear(width, width))
        self.to_out = nn.ModuleList([Linear(width, width)])
        if not is_last:
            self.to_add_out = Linear(width, width)
        for name in CONTROL_PROJECTIONS:
            setattr(self, f"{name}_control", Linear(width, width))
        if config.fused:
            # Nothing reads the fused group after the last block, so there it only answers.
            for name in ("to_k", "to_v") if is_last else CONTROL_PROJECTIONS:
                setattr(self, f"{name}_fused", Linear(width, width))
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            setattr(self, name, QKNorm(config.attention_head_dim) if config.qk_norm else nn.Identity())
        self.projections = self.plan_projections(config)
        self.merged: nn.ModuleDict | None = None  # after `merge_projections`

    def plan_projections(self, config: DenoiserConfig) -> dict[str, list[tuple[str, ...] | None]]:
        """Group -> the layers that make its query, key and value, in the order in which they run; None: not made."""
        image = [("to_q",), ("to_k",), ("to_v",)]
        planned: dict[str, list[tuple[str, ...] | None]] = {"noisy": [*image]}
        for group in ("control", "fused") if config.fused else ("control",):
            planned[group] = [(name, f"{name}_{group}") for (name,) in image]
        if self.lr_key_is_image_key:
            planned["control"][1] = None
        planned["text"] = [("add_q_proj",), ("add_k_proj",), ("add_v_proj",)]
        if self.is_last:
            planned["text"][0] = None
            if config.fused:
                planned["fused"][0] = None
        return planned

    def forward(self, groups: Groups) -> Groups:
        """Modulated groups in, projected reads out; the last block returns None for `text` and `fused`."""
        noisy, lr, fused, text = groups
        assert lr is not None  # the LR group enters every block
        query, key, value = self.split(noisy, "noisy")
        lr_query, lr_key, lr_value = self.split(lr, "control")
        # The released `orig` code normalises the noisy image's key twice and calls it the LR key. Its weights
        # were trained with that and break without it.
        lr_key = self.norm_k(key) if lr_key is None else lr_key
        queries, keys = [(query, self.norm_q), (lr_query, self.norm_q)], [(key, self.norm_k), (lr_key, self.norm_k)]
        values = [value, lr_value]
        if fused is not None:
            query, key, value = self.split(fused, "fused")
            if query is not None:
                queries.append((query, self.norm_q))
            keys.append((key, self.norm_k))
            values.append(value)
        if text is not None:
            query, key, value = self.split(text, "text")
            if query is not None:
                queries.append((query, self.norm_added_q))
            keys.append((key, self.norm_added_k))
            values.append(value)
        return self.project(self.attend(queries, keys, values), groups)

    def split(self, x_BTD: Tensor, group: str) -> list[Tensor | None]:
        """Query, key and value (B, N, T, K) of one group, before any norm; None for what nothing reads."""
        layers = self.projections[group]
        if self.merged is not None:
            parts = iter(self.merged[group](x_BTD).chunk(sum(layer is not None for layer in layers), dim=-1))
            return [None if layer is None else self.heads(next(parts)) for layer in layers]
        return [None if layer is None else self.heads(self.run_stack(x_BTD, layer)) for layer in layers]

    def run_stack(self, x_BTD: Tensor, names: tuple[str, ...]) -> Tensor:
        """Projections one upon the other: a group's own stands on top of the image's."""
        for name in names:
            x_BTD = getattr(self, name)(x_BTD)
        return x_BTD

    def attend(self, queries: list[Normed], keys: list[Normed], values: list[Tensor]) -> list[Tensor]:
        """Softmax over the tokens of all groups; one (B, T, D) per query group."""
        # Joined head by head, so that the tokens of a head lie side by side: attention then runs 5 % faster on a CPU.
        joined = normalise_and_join(queries), normalise_and_join(keys), torch.cat(values, dim=2)
        read_BTD = F.scaled_dot_product_attention(*joined).transpose(1, 2).flatten(2)
        return list(read_BTD.split([query.shape[2] for query, _ in queries], dim=1))

    def project(self, reads: list[Tensor], groups: Groups) -> Groups:
        """Output projections, in the order in which `forward` collected the queries."""
        remaining = iter(reads)
        noisy = self.to_out[0](next(remaining))
        # DiT4SR's "LR residual": the modulated input joins the read before the projection.
        lr = self.to_out_control(next(remaining) + groups.lr)
        fused = text = None
        if groups.fused is not None and not self.is_last:
            fused = self.to_out_fused(next(remaining) + groups.fused)
        if groups.text is not None and not self.is_last:
            text = self.to_add_out(next(remaining))
        return Groups(noisy, lr, fused, text)

    def heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def drop_dead_weights(self, *, has_text: bool) -> None:
        """Deletes the layers that `forward` never runs, given whether it is ever called with text."""
        dead = ["to_k_control"] if self.lr_key_is_image_key else []
        if not has_text:
            dead += ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k"]
        elif self.is_last:
            dead += ["add_q_proj", "norm_added_q"]
        for name in dead:
            if hasattr(self, name):
                delattr(self, name)

    @torch.no_grad()
    def merge_projections(self, *, has_text: bool) -> None:
        """Replaces the projections of each group by one layer, stacks multiplied out: fewer and larger products.

        The numbers change by rounding only. For inference: the state dict is no longer the published one.
        """
        merged = {}
        for group, stacks in self.projections.items():
            if group != "text" or has_text:
                weights, biases = zip(*(self.multiply_out(names) for names in stacks if names is not None), strict=True)
                like = self.to_q.weight
                with torch.device("meta"):
                    layer = Linear(like.shape[1], len(weights) * like.shape[0])
                layer.weight = nn.Parameter(torch.cat(weights).to(like), requires_grad=False)
                layer.bias = nn.Parameter(torch.cat(biases).to(like), requires_grad=False)
                merged[group] = layer
        for name in {name for stacks in self.projections.values() for names in stacks for name in names or ()}:
            if hasattr(self, name):
                delattr(self, name)
        self.merged = nn.ModuleDict(merged)

    def multiply_out(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Weight and bias, float32, of the layers run one after the other."""
        weight, bias = getattr(self, names[0]).weight.float(), getattr(self, names[0]).bias.float()
        for name in names[1:]:
            layer = getattr(self, name)
            weight, bias = layer.weight.float() @ weight, layer.weight.float() @ bias + layer.bias.float()
        return weight, bias

    @torch.no_grad()
    def init_fused_from_control(self) -> None:
        """Lets the fused group start as a second LR group."""
        for name in ("to_k", "to_v") if self.is_last else CONTROL_PROJECTIONS:
            fused = getattr(self, f"{name}_fused")
            if name == "to_k" and self.lr_key_is_image_key:
                # `orig` never trained to_k_control (it is still its initial zero): start from the image key.
                nn.init.eye_(fused.weight)
                nn.init.zeros_(fused.bias)
            else:
                fused.load_state_dict(getattr(self, f"{name}_control").state_dict())
