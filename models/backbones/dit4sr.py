"""DiT4SR's transformer from the hub's layout, in the three published sets of weights."""

from pathlib import Path

import torch

from models.backbones.published_files import load_into, read_json
from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer

REPOSITORY = "acceptee/DiT4SR"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# The published config.json is the same in all three: only the folder tells which code the weights belong to.
VARIANTS = {"dit4sr_q": "orig", "dit4sr_f": "orig", "dit4sr_r1": "r1"}
DEFAULT_WEIGHTS = "dit4sr_r1"
TABLE_SIDE = 64  # tokens of the position table kept: tiles of up to 128 latent cells


def variant_of(weights: str) -> str:
    """`orig` or `r1` for the name of a published folder. Raises ValueError on an unknown one."""
    if weights not in VARIANTS:
        raise ValueError(f"DiT4SR weights {weights!r} are unknown; use one of {', '.join(VARIANTS)}")
    return VARIANTS[weights]


def denoiser_folder(root: Path, weights: str) -> Path:
    return root / REPOSITORY / weights / "transformer"


def load_denoiser(
    root: Path,
    weights: str = DEFAULT_WEIGHTS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    drop_dead: bool = True,
    fused: bool = False,
) -> DiffusionTransformer:
    """The denoiser in `root`/acceptee/DiT4SR/`weights`/transformer, ready for inference.

    Args:
        weights: dit4sr_r1, dit4sr_q or dit4sr_f.
        fused: add the parameters of the fused group, which start as a copy of the LR group's.
        drop_dead: leave out the weights that no output depends on, and all but the middle of the position table.

    Raises:
        ValueError: unknown weights, files that are missing or broken, or keys that do not fit the config.json.
    """
    variant = variant_of(weights)
    folder = denoiser_folder(root, weights)
    config = read_denoiser_config(folder / "config.json", variant, fused)
    with torch.device("meta"):
        network = DiffusionTransformer(config)
        published = set(network.state_dict()) - set(fused_names(network))
        if drop_dead:
            network.drop_dead_weights()
    load_into(
        network,
        folder / WEIGHTS_FILE,
        torch.device(device),
        dtype,
        unread=published - set(network.state_dict()),
        elsewhere=fused_names(network),
    )
    if fused:
        start_fused_group(network, torch.device(device), dtype)
    if drop_dead:
        network.pos_embed.keep_centre(TABLE_SIDE)
    return network.eval().requires_grad_(False)


def fused_names(network: DiffusionTransformer) -> list[str]:
    """Names in the state dict that no published file has: the fused group's."""
    return [name for name in network.state_dict() if "_fused." in name]


def start_fused_group(network: DiffusionTransformer, device: torch.device, dtype: torch.dtype) -> None:
    """Gives the fused group, still on the meta device, memory and the values of the LR group."""
    for name, module in network.named_modules():
        if name.endswith("_fused"):
            module.to_empty(device=device).to(dtype)
    network.init_fused_from_control()


def read_denoiser_config(path: Path, variant: str, fused: bool = False) -> DenoiserConfig:
    """Raises ValueError when the published config.json is missing, broken or of another kind of network."""
    values = read_json(path)
    try:
        return DenoiserConfig.from_published(values, variant=variant, fused=fused)
    except TypeError as error:
        raise ValueError(f"{path} is not the config.json of DiT4SR ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
