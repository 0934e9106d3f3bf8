"""`fusion_r1.safetensors`: our trained fusion beside DiT4SR's weights, read and written.

The file holds the fused group's parameters of the denoiser ("denoiser.") and router, experts and temperatures, and
carries its configuration in its metadata.
"""

from pathlib import Path

import torch

from models.backbones.guidance import Guidance
from models.backbones.memory import Placement
from models.backbones.published import Fusion
from models.backbones.published_files import check_keys
from models.catalogue import require
from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.denoising.transformer import DiffusionTransformer
from models.fusion.joint import JointFusion, JointFusionConfig

DENOISER = "denoiser."


def fusion_file(weights: str) -> str:
    """Its place under the models folder, for a published set of weights ("dit4sr_r1")."""
    return f"m3esr/quality/fusion_{weights.removeprefix('dit4sr_')}.safetensors"


def fused_state(denoiser: DiffusionTransformer) -> dict[str, torch.Tensor]:
    """The fused group's part of the denoiser's state dict."""
    return {name: value for name, value in denoiser.state_dict().items() if "_fused." in name}


def save_fusion(path: Path, fusion: JointFusion) -> None:
    """Writes the fusion, and what it added to its denoiser. Whole or not at all.

    Raises ValueError when the denoiser's projections were merged for inference, or it has no fused group.
    """
    if not any("to_v_fused." in name for name in fused_state(fusion.denoiser)):
        raise ValueError("the denoiser has no fused parameters to save: it was built without them, or merged")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {DENOISER + name: value for name, value in fused_state(fusion.denoiser).items()}
    save_checkpoint(path, state | fusion.state_dict(), fusion.config)


def load_fusion(
    root: Path,
    weights: str,
    denoiser: DiffusionTransformer,
    dtype: torch.dtype,
    placement: Placement,
    *,
    has_coarse: bool,
) -> Fusion:
    """Fills the fused group of a denoiser built with it, and loads router, experts, extractors and VQGAN.

    Raises:
        MissingWeightsError: a network is missing that the fusion reads; the error names the command that fetches it.
        ValueError: the file was trained beside other weights, or does not fit.
    """
    path = root / fusion_file(weights)
    config = read_config(path, JointFusionConfig)
    if config.weights != weights:
        raise ValueError(f"{path} was trained beside {config.weights}, not {weights}")
    with torch.device("meta"):
        network = JointFusion(config, denoiser)
    expected = {DENOISER + name: value for name, value in fused_state(denoiser).items()} | network.state_dict()
    state = read_tensors(path)
    shapes = ({name: tuple(value.shape) for name, value in values.items()} for values in (expected, state))
    check_keys(path, *shapes, unread=set())
    added = {name: state.pop(name) for name in list(state) if name.startswith(DENOISER)}
    denoiser.load_state_dict({name.removeprefix(DENOISER): value for name, value in added.items()}, strict=False)
    network.load_state_dict(state, assign=True)  # stays float32: it is small, and sums over experts
    if not has_coarse:
        require(root, "coarse")  # the router reads how far its answer is from interpolation
    guidance = Guidance.load(root, config.fusion.modalities, dtype, placement.whole())
    return Fusion(network.eval().requires_grad_(False), guidance, beside=(denoiser,))
