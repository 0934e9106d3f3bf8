"""DiT4SR: the transformer's streams, and the sampling loop step by step."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.parity.difference import Difference, UnknownFolderError, compare, compare_all, read
from models.denoising.config import DenoiserConfig
from models.denoising.guided import Condition, sample
from models.denoising.sampling import stock_sigmas
from models.denoising.tiled import bell_weights
from models.denoising.transformer import DiffusionTransformer

VARIANTS = ("orig", "r1")
INPUTS = ("hidden_states", "controlnet_image", "encoder_hidden_states", "pooled_projections", "timestep")
SHIFT, SCALE = 0.0609, 1.5305  # of SD3.5's VAE; the official pipeline applies them to the raw LR latent


def is_transformer(folder: Path) -> bool:
    return "num_attention_heads" in read_config(folder) and any(folder.glob("outputs_*.safetensors"))


def is_pipeline(folder: Path) -> bool:
    return (folder / "cases.json").is_file() and (folder / "tensors.safetensors").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; {} when it has none. Raises UnknownFolderError when it is broken."""
    try:
        values = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UnknownFolderError(f"{folder / 'config.json'} is no JSON ({error})") from error
    return values if isinstance(values, dict) else {}


def build(folder: Path, variant: str) -> DiffusionTransformer:
    network = DiffusionTransformer(DenoiserConfig.from_published(read_config(folder), variant=variant))
    network.load_state_dict(read(folder / "weights.safetensors"))
    return network.eval().requires_grad_(False)


def compare_transformer(folder: Path) -> Iterator[Difference]:
    """Every stream after every block, and the sample, in each variant of the code that the folder has outputs of."""
    inputs = read(folder / "inputs.safetensors")
    for variant in VARIANTS:
        path = folder / f"outputs_{variant}.safetensors"
        if not path.is_file():
            continue
        streams: dict[str, Tensor] = {}
        sample_ = build(folder, variant)(*(inputs[name] for name in INPUTS), record=streams)
        for found in compare_all(streams | {"sample": sample_}, read(path)):
            yield Difference(f"{variant}.{found.name}", found.largest)


def compare_pipeline(folder: Path) -> Iterator[Difference]:
    """Latents after every step of every case, the schedules and the tile weights.

    Guidance of 8 over steps of a random network makes latents grow, and rounding with them: beyond values of 10 the
    tolerance of latents is 1e-5 of their largest.
    """
    cases, official = json.loads((folder / "cases.json").read_text()), read(folder / "tensors.safetensors")
    for name in sorted(official):
        if name.startswith("gaussian_weights_"):
            yield compare(name, bell_weights(int(name.rpartition("_")[2])), official[name])
        elif name.endswith(".sigmas"):
            yield compare(name, stock_sigmas(len(official[name]) - 1), official[name])
        elif name.endswith(".timesteps"):
            # 1000 times a sigma
            yield compare(name, 1000 * stock_sigmas(len(official[name]))[:-1], official[name], scale=1000)
    network_folder = find_network(folder, official, cases)
    for variant in VARIANTS:
        network = build(network_folder, variant)
        for name, case in cases.items():
            if f"{name}.{variant}.step0" in official:
                yield from compare_case(network, f"{name}.{variant}", name, case, official)


def compare_case(
    network: DiffusionTransformer, title: str, name: str, case: dict[str, Any], official: dict[str, Tensor]
) -> Iterator[Difference]:
    sides = ["negative_", ""] if case["cfg"] > 1 else [""]
    condition = Condition(
        (official[f"{name}.lr_latent_raw"] - SHIFT) * SCALE,
        torch.cat([official[f"{name}.{side}prompt_embeds"] for side in sides]),
        torch.cat([official[f"{name}.{side}pooled"] for side in sides]),
        case["cfg"],
    )
    latents: list[Tensor] = []
    sigmas = stock_sigmas(case["steps"])
    noise = official[f"{name}.noise"]
    sample(
        network,
        noise,
        condition,
        sigmas,
        tile=case["tile"],
        overlap=case["ov"],
        on_step=lambda step, latent: latents.append(latent),
    )
    for step, latent in enumerate(latents):
        expected = official[f"{title}.step{step}"]
        yield compare(f"{title}.step{step}", latent, expected, scale=max(1.0, expected.abs().max().item() / 10))


def find_network(folder: Path, official: dict[str, Tensor], cases: dict[str, Any]) -> Path:
    """Where the loop's transformer lies: in the folder itself, else in a neighbour whose sizes fit ("a" first)."""
    name = next(iter(cases))
    channels = official[f"{name}.noise"].shape[1]
    text, pooled = official[f"{name}.prompt_embeds"].shape[-1], official[f"{name}.pooled"].shape[-1]
    neighbours = sorted(
        path for path in folder.resolve().parent.iterdir() if path.is_dir() and path.name != folder.name
    )
    for candidate in [folder, *neighbours]:
        config = read_config(candidate) if (candidate / "weights.safetensors").is_file() else {}
        sizes = [config.get(key) for key in ("in_channels", "joint_attention_dim", "pooled_projection_dim")]
        if sizes == [channels, text, pooled]:
            return candidate
    raise UnknownFolderError(
        f"{folder} has no transformer: put its config.json and weights.safetensors there, or in a folder beside it"
    )
