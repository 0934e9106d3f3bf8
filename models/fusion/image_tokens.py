"""The fusion of `fidelity`: h_MoE (Eq. 14) as image tokens for SeeSR's cross-attention.

The paper gives its second variant no figure. Stable Diffusion 2 has no joint attention, so "concatenated with the LR
latent" has to go through cross-attention; SeeSR's attention to image tokens takes any number of them, 512 features
each, so h is projected to 512 and appended.

Dimension key: B batch  C channels  h w latent grid  P LR patches (2 x 2 cells)  D width  L tokens of one modality
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from models.denoising.embeddings import NUM_FREQUENCIES, EmbeddingMLP, PatchEmbed, sinusoid
from models.fusion.experts import FusionConfig, ModalityExpert
from models.fusion.fusion import PreparedFusion
from models.fusion.temperature import TemperatureSchedule
from models.fusion.tiled import PATCH
from models.routing.router import RouterConfig, UncertaintyRouter


@dataclass(frozen=True, kw_only=True)
class ImageTokenConfig:
    """Sizes; the defaults are for SeeSR, VQGAN f16 and DINOv3 ViT-B."""

    fusion: FusionConfig = field(default_factory=lambda: FusionConfig(width=512, num_heads=8, dino_channels=768))
    router: RouterConfig = field(default_factory=RouterConfig)
    map_channels: int = 256
    """Of VQGAN's latents, which stand for segmentation, depth and edge."""
    latent_channels: int = 4
    token_width: int = 512
    """Features of an image token of SeeSR."""
    max_tokens: int = 96
    """Longest side of a tile, in tokens."""
    trained_tokens: int = 32
    """Side of the training crops in tokens (512 px): the unit of positions."""

    def __post_init__(self) -> None:
        if set(self.fusion.modalities) != set(self.router.modalities):
            raise ValueError("the router weighs other modalities than the fusion has experts for")


class ImageTokenFusion(nn.Module):
    """Router, experts and temperatures, and the projection of what they agree on to image tokens."""

    def __init__(self, config: ImageTokenConfig):
        super().__init__()
        self.config = config
        width = config.fusion.width
        self.embed = PatchEmbed(
            patch_size=PATCH,
            in_channels=config.latent_channels,
            width=width,
            max_size=config.max_tokens,
            base_size=config.trained_tokens,
        )
        self.router = UncertaintyRouter(config.router)
        # one for all rendered maps, as the paper has one VQGAN encoder for them
        self.map_projection = nn.Linear(config.map_channels, width)
        self.dino_projection = nn.Linear(config.fusion.dino_channels, width)
        self.experts = nn.ModuleDict({name: ModalityExpert(config.fusion) for name in config.fusion.modalities})
        self.time = EmbeddingMLP(2 * NUM_FREQUENCIES, width)
        self.temperature = TemperatureSchedule(width, len(config.fusion.modalities))
        self.to_tokens = nn.Linear(width, config.token_width)

    def temperatures(self, timestep: Tensor) -> dict[str, Tensor]:
        """tau_m (B,) per modality at timesteps (B,), 0..1000; the sigma of Eq. 15 is timestep / 1000."""
        values = self.temperature(timestep / 1000, self.time(sinusoid(timestep)))
        return {name: values[:, m] for m, name in enumerate(self.config.fusion.modalities)}

    def prepare(
        self, lr_latent: Tensor, modalities: dict[str, Tensor], expert_weights: dict[str, Tensor]
    ) -> PreparedFusion:
        """All of a tile that is free of the timestep. What is off is in no dictionary.

        lr_latent: (B, C, h, w), h and w even.  modalities: VQGAN latents or DINO features, (B, ., h/2, w/2).
        expert_weights: (B, h/2, w/2), the router's times the strengths asked for.
        """
        z = self.embed(lr_latent)
        projected = {}
        for name, features in modalities.items():
            project = self.dino_projection if name == "dino" else self.map_projection
            tokens, grid = project(features.flatten(2).transpose(1, 2)), (features.shape[-2], features.shape[-1])
            projected[name] = self.experts[name].project(z, tokens, grid)
        return PreparedFusion(z, {name: expert_weights[name].flatten(1) for name in projected}, projected)

    def forward(self, prepared: PreparedFusion, timestep: Tensor) -> Tensor:
        """Image tokens (B, P, token_width) at timesteps (B,)."""
        temperatures = self.temperatures(timestep)
        fused = prepared.z
        for name, projected in prepared.projected.items():
            read = self.experts[name].read(projected, temperatures[name])
            fused = fused + prepared.expert_weights[name][..., None] * read
        return self.to_tokens(fused)
