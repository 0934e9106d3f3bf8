"""What the fusion of a public backbone is trained as and on: functions that return a frozen configuration."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.backbones.dit4sr import DEFAULT_WEIGHTS
from models.backbones.fusion_files import SEESR
from models.modalities.published.config import MODALITIES


@dataclass(frozen=True, kw_only=True)
class FusionRecipe:
    """The paper gives batch and number of steps (Sec. 4.1). Where it is silent, DiT4SR's values stand in."""

    profile: str = "quality"
    weights: str = DEFAULT_WEIGHTS  # "a pretrained text-guided SR checkpoint"; the paper does not say which
    modalities: tuple[str, ...] = MODALITIES
    query: Literal["modality", "patch"] = "modality"  # Eq. 15 | Eq. 2, see models.fusion.experts
    is_local: bool = False
    total_batch: int = 16
    num_steps: int = 250_000
    learning_rate: float = 5e-5  # constant, DiT4SR's
    warmup_steps: int = 1
    weight_decay: float = 1e-2  # DiT4SR's, as the three that follow
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 1.0
    text_dropout: float = 0.2  # share of samples that see the empty prompt
    ema_decay: float = 0.999  # ours, as everything below
    modality_dropout: float = 0.1  # of each modality of a sample; one always stays
    mean_weight: float = 0.5  # w_bar of the theorem's unbiasedness constraint E[w] = w_bar
    unbiased_weight: float = 0.05
    mean_memory: float = 0.98  # E[w] is a running mean over batches: one image's mean is no expectation

    def __post_init__(self) -> None:
        if unknown := [name for name in self.modalities if name not in MODALITIES]:
            raise ValueError(f"unknown modality {', '.join(unknown)}; known: {', '.join(MODALITIES)}")
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError("modalities must be named, each once")
        if not 0 <= self.modality_dropout < 1:
            raise ValueError(f"modality_dropout {self.modality_dropout} is outside 0..1")


def literal() -> FusionRecipe:
    """Experts as Eq. 15 is written: queries from the modality."""
    return FusionRecipe()


def local() -> FusionRecipe:
    """Experts as `compact` has them: the patch asks (Eq. 2), and attention falls with distance on the grid."""
    return replace(literal(), query="patch", is_local=True)


PROFILES: dict[str, dict[str, Any]] = {
    "quality": {},
    # half of SeeSR's training samples saw the empty prompt; its learning rate is DiT4SR's
    "fidelity": {"weights": SEESR, "text_dropout": 0.5},
}
RECIPES: dict[str, Callable[[], FusionRecipe]] = {"literal": literal, "local": local}


def recipe_for(profile: str, name: str = "literal") -> FusionRecipe:
    """A recipe by its name, beside the backbone of a profile. Raises KeyError on an unknown one."""
    return replace(RECIPES[name](), profile=profile, **PROFILES[profile])
