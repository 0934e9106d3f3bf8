"""Fusion training beside DiT4SR: router, experts, temperatures and the `*_fused` projections of its attention."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from evaluation.memory import SD35 as SD35_SIZES
from evaluation.speed import TEXT_TOKENS
from models.backbones.dit4sr import denoiser_folder, load_denoiser, read_denoiser_config, variant_of
from models.backbones.fusion_files import save_fusion
from models.backbones.memory import Placement
from models.backbones.quality import SD35, Schedule, check_installed, vae_dtype
from models.backbones.text import PromptEncoder
from models.backbones.vae import TiledVae
from models.denoising.transformer import DiffusionTransformer
from models.fusion.experts import FusionConfig
from models.fusion.joint import JointFusion, JointFusionConfig
from models.routing.router import RouterConfig
from training.published.backbone import Backbone, FusedNetwork, ReadText, feature_widths
from training.published.cache import FusionBatch
from training.published.objectives import FlowMatching
from training.published.recipe import FusionRecipe

TINY_SIZES = replace(
    SD35_SIZES,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=16,
    pooled_projection_dim=16,
    dual_attention_layers=(0,),
)


class FusedDenoiser(FusedNetwork):
    """Of DiT4SR only the `*_fused` projections take gradients; in bfloat16 they run under autocast."""

    def __init__(self, denoiser: DiffusionTransformer, fusion: JointFusion):
        super().__init__(fusion)
        self.denoiser = denoiser.requires_grad_(False)
        for name, module in denoiser.named_modules():
            if name.endswith("_fused"):
                module.float().requires_grad_(True)
        self.dtype = denoiser.proj_out.weight.dtype

    def predict(self, batch: FusionBatch, noisy_latent: Tensor, timestep: Tensor, fused: Tensor | None) -> Tensor:
        with torch.autocast(noisy_latent.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.denoiser(
                noisy_latent.to(self.dtype),
                batch.lr_latent.to(self.dtype),
                batch.conditions["text_embeddings"].to(self.dtype),
                batch.conditions["pooled"].to(self.dtype),
                timestep,
                None if fused is None else fused.to(self.dtype),
            ).float()

    def checkpoint(self) -> None:
        self.denoiser.checkpoint_blocks()


class QualityBackbone(Backbone):
    """SD3.5 medium with DiT4SR."""

    def check_installed(self, root: Path, weights: str) -> None:
        check_installed(root, weights)

    def has_t5(self, root: Path) -> bool:
        return (root / SD35 / "text_encoder_3").is_dir()

    def objective(self, root: Path | None) -> FlowMatching:
        path = None if root is None else root / SD35 / "scheduler" / "scheduler_config.json"
        return FlowMatching(Schedule() if path is None else Schedule.read(path))

    def load_text(self, root: Path, weights: str, device: torch.device, dtype: torch.dtype) -> ReadText:
        """As inference encodes them: 77 tokens of CLIP, 256 of T5.

        DiT4SR was trained with 77 of T5's tokens and is sampled with 256; our part is trained as it will be sampled.
        """
        config = read_denoiser_config(denoiser_folder(root, weights) / "config.json", variant_of(weights))
        encoder = PromptEncoder.load(root / SD35, config.joint_attention_dim, dtype, Placement("none", device))

        def read(text: str) -> dict[str, Tensor]:
            embeddings, pooled = encoder.encode([text])
            return {"text_embeddings": embeddings[0], "pooled": pooled[0]}

        return read

    def load_vae(self, root: Path, placement: Placement, dtype: torch.dtype) -> TiledVae:
        return TiledVae.load(root / SD35 / "vae", vae_dtype(dtype, placement.device), placement)

    def load(self, root: Path, weights: str, device: torch.device, dtype: torch.dtype) -> DiffusionTransformer:
        return load_denoiser(root, weights, device, dtype, fused=True)

    def random(self, device: torch.device, dtype: torch.dtype, *, is_tiny: bool) -> DiffusionTransformer:
        with device:
            denoiser = DiffusionTransformer(replace(TINY_SIZES if is_tiny else SD35_SIZES, fused=True)).to(dtype)
            denoiser.drop_dead_weights()
            denoiser.init_fused_from_control()
        return denoiser

    def random_conditions(self, denoiser: DiffusionTransformer, side: int) -> dict[str, tuple[int, ...]]:
        config = denoiser.config
        return {
            "clean": (config.in_channels, side, side),
            "text_embeddings": (TEXT_TOKENS, config.joint_attention_dim),
            "pooled": (config.pooled_projection_dim,),
        }

    def fuse(self, denoiser: DiffusionTransformer, recipe: FusionRecipe, seen: FusionBatch) -> FusedDenoiser:
        map_channels, dino_channels = feature_widths(seen)
        fusion = FusionConfig(
            width=denoiser.config.width,
            num_heads=denoiser.config.num_attention_heads,
            modalities=recipe.modalities,
            query=recipe.query,
            is_local=recipe.is_local,
            map_channels=map_channels,
            dino_channels=dino_channels,
        )
        router = RouterConfig(modalities=recipe.modalities)
        config = JointFusionConfig(weights=recipe.weights, fusion=fusion, router=router)
        return FusedDenoiser(denoiser, JointFusion(config, denoiser))

    def save(self, path: Path, network: FusedNetwork) -> None:
        assert isinstance(network, FusedDenoiser)
        save_fusion(path, network.fusion)
