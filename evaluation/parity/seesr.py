"""SeeSR: the ControlNet's residuals and the UNet's sample."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from torch import nn

from evaluation.parity.difference import Difference, compare_all, read
from models.backbones.published_files import read_json
from models.denoising.seesr.config import SeeSRConfig
from models.denoising.seesr.networks import Residuals, SeeSRControlNet, SeeSRUNet

CONDITIONING_SCALE = 0.8  # of the calls that made the fixture
Network = TypeVar("Network", bound=nn.Module)


def is_seesr(folder: Path) -> bool:
    return (folder / "unet_config.json").is_file() and (folder / "controlnet_config.json").is_file()


def build(kind: type[Network], folder: Path, name: str) -> Network:
    network = kind(SeeSRConfig.from_published(read_json(folder / f"{name}_config.json")))
    network.load_state_dict(read(folder / f"{name}.safetensors"))
    return network.eval().requires_grad_(False)


def compare_seesr(folder: Path) -> Iterator[Difference]:
    """The UNet hears the official residuals, so that a difference is told where it arises."""
    inputs, official = read(folder / "inputs.safetensors"), read(folder / "outputs.safetensors")
    text, image = inputs["encoder_hidden_states"], inputs["image_encoder_hidden_states"]
    residuals = build(SeeSRControlNet, folder, "controlnet")(
        inputs["sample"], inputs["timestep"], text, inputs["controlnet_cond"], image, CONDITIONING_SCALE
    )
    ours = {f"down{k}": value for k, value in enumerate(residuals.down)} | {"mid": residuals.mid}
    heard = Residuals(tuple(official[f"down{k}"] for k in range(len(residuals.down))), official["mid"])
    ours["sample"] = build(SeeSRUNet, folder, "unet")(inputs["sample"], inputs["timestep"], text, image, heard)
    return compare_all(ours, official)
