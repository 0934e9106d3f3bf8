"""VQGAN's encoder: rendered maps into the latents that the fusion reads (Sec. 3.2); f = 16 for the paper's grid."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.catalogue import require
from models.checkpoint import read_foreign
from models.sources import SOURCES


class VqganEncoder:
    """Maps (B, 3, H, W) in [0, 1], sides multiples of 16 -> latents (B, 256, H/16, W/16)."""

    def __init__(self, model: Any, is_quantised: bool = False):
        self.model = model
        self.is_quantised = is_quantised
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)

    @classmethod
    def load(
        cls,
        root: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        is_quantised: bool = False,
    ) -> "VqganEncoder":
        """From the models folder: the original checkpoint (last.ckpt), or a folder of diffusers' VQModel in its place.

        is_quantised: latents are the nearest codes; the paper does not say which it feeds.
        Raises MissingWeightsError when neither is there.
        """
        from diffusers import VQModel

        folder = root / SOURCES["vqgan"].folder
        if (folder / "config.json").is_file():
            model = VQModel.from_pretrained(folder, local_files_only=True)
        else:
            require(root, "vqgan")
            model = _from_taming(read_foreign(folder / "last.ckpt", objects="drop"))
        del model.decoder, model.post_quant_conv  # maps are only encoded
        return cls(model.to(device, dtype).eval().requires_grad_(False), is_quantised)

    def to(self, device: str | torch.device) -> "VqganEncoder":
        """Move the network, as a memory plan asks."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def encode(self, rendered: Tensor) -> Tensor:
        """rendered: (B, 3, H, W) in [0, 1] -> (B, C, H/16, W/16). Raises ValueError for sides that do not fit."""
        height, width = rendered.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"VQGAN needs sides that are multiples of {self.factor}, not {height} x {width}")
        weight = next(self.model.parameters())
        latents = self.model.encode(2 * rendered.to(weight.device, weight.dtype) - 1).latents
        if self.is_quantised:
            latents = self.model.quantize(latents)[0]
        return latents.to(rendered.device, rendered.dtype)


def _from_taming(checkpoint: Mapping[str, Any]) -> Any:
    from diffusers import VQModel

    # Lightning saved it: the weights lie under "state_dict", and beside them objects of its own, which were dropped
    found = checkpoint.get("state_dict")
    found = found if isinstance(found, Mapping) else checkpoint
    state = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    downs = sorted({int(match[1]) for name in state if (match := re.match(r"encoder\.down\.(\d+)\.block\.", name))})
    if not downs or "quant_conv.weight" not in state:
        raise ValueError("the checkpoint has no VQGAN encoder (keys encoder.down.*, quant_conv)")
    channels = tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in downs)
    has_attention = [f"encoder.down.{i}.attn.0.norm.weight" in state for i in downs]
    num_codes, code_width = state["quantize.embedding.weight"].shape
    with torch.device("meta"):
        model = VQModel(
            down_block_types=tuple(f"{'Attn' if attention else ''}DownEncoderBlock2D" for attention in has_attention),
            up_block_types=tuple("UpDecoderBlock2D" for _ in downs),
            block_out_channels=channels,
            layers_per_block=len({name.split(".")[4] for name in state if name.startswith("encoder.down.0.block.")}),
            latent_channels=state["encoder.conv_out.weight"].shape[0],
            num_vq_embeddings=num_codes,
            vq_embed_dim=code_width,
        )
    wanted = {name for name in model.state_dict() if name.startswith(("encoder.", "quant_conv.", "quantize."))}
    converted = {name: value for name, value in convert_taming(state).items() if name in wanted}
    if lacking := sorted(wanted - set(converted)):
        raise ValueError(f"the VQGAN checkpoint lacks {', '.join(lacking[:3])}")
    model.load_state_dict(converted, strict=False, assign=True)
    return model


_TAMING_NAMES = (
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^encoder\.mid\.block_1\.", "encoder.mid_block.resnets.0."),
    (r"^encoder\.mid\.block_2\.", "encoder.mid_block.resnets.1."),
    (r"^encoder\.mid\.attn_1\.", "encoder.mid_block.attentions.0."),
    (r"^encoder\.norm_out\.", "encoder.conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def convert_taming(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoder, quant_conv and codebook of the original VQGAN under diffusers' names; the rest is left out.

    Its attention is made of 1 x 1 convolutions, diffusers' of linear layers: the same numbers without the two axes.
    """
    converted = {}
    for name, value in state.items():
        if not name.startswith(("encoder.", "quant_conv.", "quantize.embedding.")):
            continue
        for pattern, new in _TAMING_NAMES:
            name = re.sub(pattern, new, name)
        if ".attentions." in name and value.ndim == 4:
            value = value[:, :, 0, 0]
        converted[name] = value
    return converted
