"""Our trained fusion beside DiT4SR's or SeeSR's weights, read and written: one file, its configuration in its metadata.

It holds router, experts and temperatures; beside DiT4SR also the fused group's parameters of the denoiser
("denoiser."), beside SeeSR the projection to image tokens.
"""

from pathlib import Path

import torch

from models.backbones.guidance import Guidance
from models.backbones.memory import Placement
from models.backbones.published import Fusion
from models.backbones.published_files import check_keys
from models.catalogue import require
from models.checkpoint import first_line, read_config, read_tensors, save_checkpoint
from models.denoising.transformer import DiffusionTransformer
from models.fusion.image_tokens import ImageTokenConfig, ImageTokenFusion
from models.fusion.joint import JointFusion, JointFusionConfig

DENOISER = "denoiser."
SEESR = "seesr"


def fusion_file(weights: str) -> str:
    """Its place under the models folder, for a published set of weights ("dit4sr_r1", "seesr")."""
    if weights == SEESR:
        return "m3esr/fidelity/fusion.safetensors"  # SeeSR has one set only
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
    return with_guidance(root, network, dtype, placement, has_coarse=has_coarse, beside=(denoiser,))


def save_image_fusion(path: Path, fusion: ImageTokenFusion) -> None:
    """Writes the fusion beside SeeSR, nothing of which it changes. Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, fusion.state_dict(), fusion.config)


def load_image_fusion(root: Path, dtype: torch.dtype, placement: Placement, *, has_coarse: bool) -> Fusion | None:
    """The fusion beside SeeSR with the networks it needs; None where there are no weights.

    Raises MissingWeightsError when a network is missing that it reads, ValueError when the file does not fit.
    """
    path = root / fusion_file(SEESR)
    if not path.is_file():
        return None
    network = ImageTokenFusion(read_config(path, ImageTokenConfig))
    try:
        network.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its own configuration ({first_line(error)})") from error
    return with_guidance(root, network, dtype, placement, has_coarse=has_coarse)


def with_guidance(
    root: Path,
    network: JointFusion | ImageTokenFusion,
    dtype: torch.dtype,
    placement: Placement,
    *,
    has_coarse: bool,
    beside: tuple[torch.nn.Module, ...] = (),
) -> Fusion:
    """A loaded fusion with the extractors and the VQGAN that it reads. Raises MissingWeightsError without them."""
    if not has_coarse:
        require(root, "coarse")  # the router reads how far its answer is from interpolation
    guidance = Guidance.load(root, network.config.fusion.modalities, dtype, placement.whole())
    return Fusion(network.eval().requires_grad_(False), guidance, beside)
