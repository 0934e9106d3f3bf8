"""The fusion of `quality`: h_MoE (Eq. 14) as a token group of its own in the joint attention of SD3.5 (Section 3.2).

Dimension key: B batch  C channels  h w latent grid  P LR patches (2 x 2 cells)  D width
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from models.denoising.transformer import DiffusionTransformer
from models.fusion.experts import FusionConfig
from models.fusion.fusion import ModalityFusion, PreparedFusion
from models.routing.router import RouterConfig, UncertaintyRouter


@dataclass(frozen=True, kw_only=True)
class JointFusionConfig:
    """Sizes; the defaults are for SD3.5 medium, VQGAN f16 and DINOv3 ViT-B."""

    weights: str = "dit4sr_r1"
    """The published weights it was trained beside; with others its fused group would mean nothing."""
    fusion: FusionConfig = field(
        default_factory=lambda: FusionConfig(width=1536, num_heads=24, dino_channels=768, map_channels=256)
    )
    router: RouterConfig = field(default_factory=RouterConfig)

    def __post_init__(self) -> None:
        if set(self.fusion.modalities) != set(self.router.modalities):
            raise ValueError("the router weighs other modalities than the fusion has experts for")


class JointFusion(nn.Module):
    """Router, experts and temperatures beside a denoiser, whose patches and time embedding they read.

    The denoiser is no part of this module: its own fused parameters lie in it.
    """

    def __init__(self, config: JointFusionConfig, denoiser: DiffusionTransformer):
        super().__init__()
        width = denoiser.config.width
        if config.fusion.width != width:
            raise ValueError(f"the fusion has width {config.fusion.width}, the denoiser {width}")
        self.config = config
        self.router = UncertaintyRouter(config.router)
        self.fusion = ModalityFusion(config.fusion, time_width=width)
        self._denoiser = (denoiser,)  # in a tuple, so that it is not registered

    @property
    def denoiser(self) -> DiffusionTransformer:
        return self._denoiser[0]

    def temperatures(self, timestep: Tensor) -> dict[str, Tensor]:
        """tau_m (B,) per modality at timesteps (B,) = 1000 sigma, Eq. 15."""
        embedding = self.denoiser.time_embedding(timestep).to(self.fusion.temperature.to_alpha.weight.dtype)
        return self.fusion.temperatures(timestep / 1000, embedding)

    def prepare(
        self, lr_latent: Tensor, modalities: dict[str, Tensor], expert_weights: dict[str, Tensor]
    ) -> PreparedFusion:
        """All of a tile that is free of the timestep. What is off is in no dictionary.

        lr_latent: (B, C, h, w), h and w even.  modalities: VQGAN latents or DINO features, (B, ., h/2, w/2).
        expert_weights: (B, h/2, w/2), the router's times the strengths asked for.
        """
        z = self.denoiser.embed_latent(lr_latent.to(self.denoiser.dtype)).to(lr_latent.dtype)
        return self.fusion.prepare(z, modalities, {name: w.flatten(1) for name, w in expert_weights.items()})

    def forward(self, prepared: PreparedFusion, timestep: Tensor) -> Tensor:
        """h (B, P, D) at timesteps (B,)."""
        return self.fusion.fuse(prepared, self.temperatures(timestep))
