"""How the public backbones are loaded and held; free of torch."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_MODELS_DIR = Path("~/.cache/m3esr/models")


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """An operator's choices; each has a setting of the same name (docs/configuration.md)."""

    models_dir: Path = DEFAULT_MODELS_DIR
    """Holds <owner>/<repository>/<path as on the hub>."""
    offload: str = "none"
    """none, model or sequential: see `models.backbones.memory.Placement`."""
    dtype: str = "auto"
    """auto, bf16, fp16 or fp32."""
    quality_weights: str = "dit4sr_r1"
    """dit4sr_r1, dit4sr_q or dit4sr_f."""
    captions: str = "none"
    """llava, blip or none: who writes the caption of an image without a prompt."""
    caption_bits: str = "16"
    """16, 8 or 4 bits per weight of llava."""
    official_sampling: bool = False
    """Sample as the released scripts do: the LR latent from the VAE's posterior, noise on the device. Off: the
    posterior's mode and noise from the CPU, so that a seed gives one picture on every machine."""
    compile: bool = False
    """torch.compile the denoiser: the first image takes minutes, the others less time."""

    @property
    def root(self) -> Path:
        return self.models_dir.expanduser()
