"""The GPU memory that each plan of the public backbones needs, computed from the numbers of parameters. Not measured.

    python -m evaluation.memory

Networks are built without their memory (on the meta device), so this takes seconds and no weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from models.backbones.fidelity import PublishedSampling as FidelitySampling
from models.backbones.memory import GIB, LEAST_SIDE, OFFLOADS, PUBLISHED_SIDES, RESERVE, needed_bytes
from models.denoising.config import DenoiserConfig
from models.denoising.seesr.config import SeeSRConfig
from models.denoising.seesr.networks import SeeSRControlNet, SeeSRUNet
from models.denoising.transformer import DiffusionTransformer
from models.fusion.joint import JointFusion, JointFusionConfig
from models.modalities.dape.network import Tagger, TaggerConfig, build_encoder
from models.routing.realesrgan import RRDBNet

HALF, FULL = 2, 4  # bytes per parameter
SD35 = DenoiserConfig(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=24,
    attention_head_dim=64,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=2048,
    pos_embed_max_size=64,  # what is kept of 384
    dual_attention_layers=tuple(range(13)),
)
# Parameters of the extractors of a fusion, by their papers and hub pages: Mask2Former Swin-L, Depth Anything V2 small,
# DINOv3 ViT-B, VQGAN f16's encoder.
EXTRACTORS = 216_000_000 + 24_800_000 + 85_700_000 + 29_400_000

# Parameters, and those of the largest layer; a test holds them to the libraries' own classes.
STOCK = {
    "VAE": (83_819_683, 2_359_808),
    "VAE of SD 2.1": (83_653_863, 2_359_808),
    "CLIP-L": (123_650_304, 37_945_344),
    "CLIP-bigG": (694_659_840, 63_242_240),
    "CLIP-H": (340_387_840, 50_593_792),
    "T5-XXL": (4_762_310_656, 131_596_288),
}


@dataclass(frozen=True)
class Part:
    """One network: bytes of its weights, and of the largest layer among them."""

    name: str
    num_bytes: int
    largest_layer: int


def measure(name: str, build: Callable[[], nn.Module], width: int = HALF) -> Part:
    with torch.device("meta"):
        network = build()
    layers = [sum(p.numel() for p in m.parameters(recurse=False)) for m in network.modules()]
    return Part(name, width * sum(layers), width * max(layers))


def dit4sr(fused: bool) -> nn.Module:
    network = DiffusionTransformer(replace(SD35, fused=fused))
    network.drop_dead_weights()
    return network


def stock(name: str) -> Part:
    """A network of transformers or diffusers, whose classes only models/ may import: from the counts below."""
    num_parameters, largest = STOCK[name]
    return Part(name, HALF * num_parameters, HALF * largest)


def quality_parts(*, has_t5: bool = True, fused: bool = False) -> list[Part]:
    parts = [
        measure("DiT4SR", lambda: dit4sr(fused)),
        stock("VAE"),
        stock("CLIP-L"),
        stock("CLIP-bigG"),
        measure("Real-ESRGAN", RRDBNet, FULL),
    ]
    if has_t5:
        parts.append(stock("T5-XXL"))
    if fused:
        parts.append(measure("fusion", lambda: JointFusion(JointFusionConfig(), DiffusionTransformer(SD35)), FULL))
        parts.append(Part("extractors", HALF * EXTRACTORS, HALF * 10_000_000))
    return parts


def fidelity_parts() -> list[Part]:
    return [
        measure("SeeSR UNet", lambda: SeeSRUNet(SeeSRConfig())),
        measure("SeeSR ControlNet", lambda: SeeSRControlNet(SeeSRConfig())),
        stock("VAE of SD 2.1"),
        stock("CLIP-H"),
        measure("Real-ESRGAN", RRDBNet, FULL),
        measure("RAM", lambda: Tagger(build_encoder(TaggerConfig()), TaggerConfig()), FULL),
    ]


TOGETHER = ({"SeeSR UNet", "SeeSR ControlNet"}, {"DiT4SR", "fusion"})  # run in one stage
WHOLE = {"RAM", "VAE of SD 2.1", "extractors"}  # never fetched layer by layer: `Placement.whole`
RESIDENT = {"fusion"}  # never leaves the device


def weights_on_device(parts: list[Part], offload: str) -> int:
    """Bytes of weights on the device at the worst moment."""
    if offload == "none":
        return sum(part.num_bytes for part in parts)
    resident = sum(part.num_bytes for part in parts if part.name in RESIDENT)
    if offload == "sequential":
        return resident + max(part.num_bytes if part.name in WHOLE else part.largest_layer for part in parts)
    stages = [{part.name} for part in parts] + [set(names) for names in TOGETHER]
    return (
        max(
            sum(part.num_bytes for part in parts if part.name in stage and part.name not in RESIDENT)
            for stage in stages
        )
        + resident
    )


def working_bytes(sides: dict[str, int]) -> int:
    """Activations of the largest tile, with the reserve that `TileSizes` keeps."""
    return int(RESERVE * max(needed_bytes(name, side) for name, side in sides.items()))


FIDELITY = FidelitySampling()
FIDELITY_SIDES = {
    "denoise": FIDELITY.tile,
    "encode": FIDELITY.vae_encoder_tile,
    "decode": FIDELITY.vae_decoder_tile,
}
COLUMNS: dict[str, tuple[Callable[[], list[Part]], dict[str, int]]] = {
    "`quality`": (quality_parts, PUBLISHED_SIDES),
    "`quality` without T5": (lambda: quality_parts(has_t5=False), PUBLISHED_SIDES),
    "`quality` with the fusion": (lambda: quality_parts(fused=True), PUBLISHED_SIDES),
    "`fidelity`": (fidelity_parts, FIDELITY_SIDES),
}


def table() -> str:
    """Markdown: GiB per plan and profile, with the tiles as published and at their smallest."""
    columns = {name: (make(), sides) for name, (make, sides) in COLUMNS.items()}
    lines = ["| `M3ESR_OFFLOAD` | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for offload in OFFLOADS:
        cells = []
        for parts, sides in columns.values():
            weights, smallest = weights_on_device(parts, offload), dict.fromkeys(sides, LEAST_SIDE)
            full, small = (weights + working_bytes(each) for each in (sides, smallest))
            cells.append(f"{full / GIB:.1f} ({small / GIB:.1f})")
        lines.append(f"| `{offload}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    for name, (make, _) in COLUMNS.items():
        print(name.replace("`", ""))
        for part in make():
            print(f"  {part.num_bytes / GIB:6.2f} GiB  {part.name}")
    print(table())


if __name__ == "__main__":
    main()
