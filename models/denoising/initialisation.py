"""Start values for training a denoiser from nothing."""

import torch
from torch import nn

from models.denoising.attention import JointAttention
from models.denoising.blocks import FeedForward, Modulation


@torch.no_grad()
def initialise_for_training(model: nn.Module, control_conv_scale: float) -> None:
    """Every block starts as the identity and the velocity as zero (adaLN-zero, as in DiT).

    - linear layers and patches: Xavier uniform, biases zero;
    - modulations (hence all gates) zero; the caller zeroes its output projection;
    - stacked LR and fused projections: identity, so that LR patches are first read as the image patches they
      are (DiT4SR starts them at zero, which suits a finished backbone but would hide the LR image from a new
      one); their output projection copies the image's;
    - LR convolution: one centre tap with strength 1 after `control_conv_scale`, so that LR features reach the
      noisy patch at their own place from the first step.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Modulation):
            nn.init.zeros_(module.linear.weight)
        elif isinstance(module, FeedForward) and hasattr(module, "control_conv"):
            nn.init.zeros_(module.control_conv.weight)
            module.control_conv.weight[:, :, 1, 1] = 1 / control_conv_scale
        elif isinstance(module, JointAttention):
            start_as_image_projections(module)


@torch.no_grad()
def start_as_image_projections(attention: JointAttention) -> None:
    for name, layer in attention.named_children():
        if name in ("to_out_control", "to_out_fused"):
            layer.load_state_dict(attention.to_out[0].state_dict())
        elif name.endswith(("_control", "_fused")):
            nn.init.eye_(layer.weight)
