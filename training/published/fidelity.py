"""Fusion training beside SeeSR: router, experts, temperatures and the projection to image tokens.

UNet and ControlNet stay as they are; gradients reach the fusion through their attention to image tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.backbones.fusion_files import SEESR, save_image_fusion
from models.backbones.memory import Placement
from models.backbones.pooled_vae import PooledVae
from models.backbones.quality import vae_dtype
from models.backbones.sd21 import CONTROLNET, SD21, UNET, TextEncoder, load_seesr, read_schedule
from models.backbones.vae import TiledVae
from models.catalogue import require
from models.denoising.seesr.blocks import checkpoint_layers
from models.denoising.seesr.config import SeeSRConfig
from models.denoising.seesr.guided import PIXELS, Networks
from models.denoising.seesr.networks import SeeSRControlNet, SeeSRUNet
from models.fusion.experts import FusionConfig
from models.fusion.image_tokens import ImageTokenConfig, ImageTokenFusion
from models.fusion.tiled import PATCH
from models.modalities.dape.extractor import PromptExtractor
from models.modalities.dape.network import TaggerConfig
from models.routing.router import RouterConfig
from training.published.backbone import Backbone, FusedNetwork, ReadPair, ReadText, feature_widths
from training.published.cache import FusionBatch
from training.published.objectives import NoisePrediction
from training.published.recipe import FusionRecipe

TEXT_TOKENS, DAPE_TOKENS = 77, 145
TINY_SIZES = SeeSRConfig(
    block_out_channels=(8, 16),
    attention_head_dim=(2, 4),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    cross_attention_dim=16,
    norm_num_groups=4,
    conditioning_embedding_out_channels=(4, 4, 4, 8),
)


class FusedSeeSR(FusedNetwork):
    """SeeSR as it was loaded; it is told the fused tokens behind DAPE's, as at inference."""

    fusion: ImageTokenFusion

    def __init__(self, networks: Networks, fusion: ImageTokenFusion):
        super().__init__(fusion)
        self.networks = networks
        self.unet, self.controlnet = (part.requires_grad_(False) for part in (networks.unet, networks.controlnet))

    def predict(self, batch: FusionBatch, noisy_latent: Tensor, timestep: Tensor, fused: Tensor | None) -> Tensor:
        told = batch.conditions
        tokens = told["image_tokens"] if fused is None else torch.cat([told["image_tokens"], fused], 1)
        return self.networks.epsilon(noisy_latent, timestep, told["text_embeddings"], told["work"], tokens)

    def checkpoint(self) -> None:
        checkpoint_layers(self.unet)
        checkpoint_layers(self.controlnet)


@dataclass(frozen=True)
class FidelityBackbone(Backbone):
    """SD 2.1 with SeeSR. tagger: sizes of RAM; its checkpoint does not hold them. None: as published."""

    tagger: TaggerConfig | None = None

    def check_installed(self, root: Path, weights: str) -> None:
        """RAM is needed too: beside the tokens that stand in for it, the fusion would learn to replace them."""
        if weights != SEESR:
            raise ValueError(f"weights {weights!r} are unknown; the fusion of 'fidelity' is trained beside {SEESR}")
        require(root, "fidelity")

    def objective(self, root: Path | None) -> NoisePrediction:
        return NoisePrediction() if root is None else NoisePrediction(read_schedule(root))

    def load_text(self, root: Path, weights: str, device: torch.device, dtype: torch.dtype) -> ReadText:
        encoder = TextEncoder.load(root / SD21, dtype, Placement("none", device))
        return lambda text: {"text_embeddings": encoder.encode([text])[0]}

    def load_vae(self, root: Path, placement: Placement, dtype: torch.dtype) -> TiledVae:
        return PooledVae.load(root / SD21 / "vae", vae_dtype(dtype, placement.device), placement)

    def load_reader(self, root: Path, placement: Placement) -> ReadPair:
        """The image tokens of DAPE, which sees the LR image as it was sent, and the work image for the ControlNet."""
        prompts = PromptExtractor.load(root, self.tagger)
        placement.add(prompts.tagger)

        def read(lr: Tensor, work: Tensor) -> dict[str, Tensor]:
            return {"image_tokens": prompts.tagger.image_tokens(lr)[0], "work": work[0]}

        return read

    def load(self, root: Path, weights: str, device: torch.device, dtype: torch.dtype) -> Networks:
        return Networks(
            load_seesr(SeeSRUNet, root / UNET, device, dtype),
            load_seesr(SeeSRControlNet, root / CONTROLNET, device, dtype),
        )

    def random(self, device: torch.device, dtype: torch.dtype, *, is_tiny: bool) -> Networks:
        sizes = TINY_SIZES if is_tiny else SeeSRConfig()
        with device:
            return Networks(SeeSRUNet(sizes).to(dtype), SeeSRControlNet(sizes).to(dtype))

    def random_conditions(self, denoiser: Networks, side: int) -> dict[str, tuple[int, ...]]:
        config = denoiser.unet.config
        return {
            "clean": (config.in_channels, side, side),
            "text_embeddings": (TEXT_TOKENS, config.cross_attention_dim),
            "image_tokens": (DAPE_TOKENS, config.image_width),
            "work": (3, PIXELS * side, PIXELS * side),
        }

    def fuse(self, denoiser: Networks, recipe: FusionRecipe, seen: FusionBatch) -> FusedSeeSR:
        map_channels, dino_channels = feature_widths(seen)
        fusion = FusionConfig(
            width=512,
            num_heads=8,
            modalities=recipe.modalities,
            query=recipe.query,
            is_local=recipe.is_local,
            dino_channels=dino_channels,
        )
        config = ImageTokenConfig(
            fusion=fusion,
            router=RouterConfig(modalities=recipe.modalities),
            map_channels=map_channels,
            latent_channels=seen.lr_latent.shape[1],
            token_width=denoiser.unet.config.image_width,
            trained_tokens=max(seen.lr_latent.shape[-2:]) // PATCH,
        )
        return FusedSeeSR(denoiser, ImageTokenFusion(config))

    def save(self, path: Path, network: FusedNetwork) -> None:
        assert isinstance(network, FusedSeeSR)
        save_image_fusion(path, network.fusion)
