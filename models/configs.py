"""The whole network as one frozen value; a checkpoint carries it, so one class serves every size."""

from dataclasses import dataclass, field

from models.codec import CodecConfig
from models.denoising.config import DenoiserConfig
from models.fusion.experts import FusionConfig
from models.modalities.config import PerceptionConfig
from models.modalities.text import TextConfig
from models.routing.coarse import CoarseConfig
from models.routing.reliability import ReliabilityConfig
from models.routing.router import RouterConfig

VISUAL_MODALITIES = ("segmentation", "depth", "edge", "dino")
MODALITIES = (*VISUAL_MODALITIES, "text")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How `compact` is sampled: a flow from the coarse image plus a little noise (sigma 1) to the SR image."""

    num_steps: int = 1  # of the preset balanced; more steps bring next to nothing: the model card
    best_num_steps: int = 1  # of the preset best
    mirror_share: float = 0.0  # largest share of the mirror image in the picture, see `M3ESR.look_in_mirror`
    mirror_noise: float = 0.01  # deviation of what the coarse image leaves out of the LR image at which half is taken
    flow_share: float = 1.0  # of what the flow changes in the coarse image that is taken
    noise_scale: float = 0.1  # largest deviation of the noise at sigma 1, in units of the whitened residual
    noise_reference: float = 0.05  # uncertainty at which half of it is given; none where the coarse image is sure
    restoration_threshold: float = 0.003  # uncertainty below which the answer falls back to interpolation
    flat_threshold: float = 1 / 255  # contrast around a patch below which there is nothing to restore either
    consistency: float = 0.1  # share of what the shrunk result misses of the LR image that is given back; 0 is off
    deblocking: float = 0.1  # how much a step at a phase of the 8 px grid may change, halved; 0 is off
    shift: float = 1.0
    tile: int = 24  # latent cells per side, the training crop
    overlap: int = 4


@dataclass(frozen=True, kw_only=True)
class M3ESRConfig:
    coarse: CoarseConfig
    perception: PerceptionConfig
    codec: CodecConfig = field(default_factory=CodecConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    reliability: ReliabilityConfig | None = None  # ours, not the paper's; None: the router as it is in the paper
    fusion: FusionConfig = field(default_factory=FusionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    denoiser: DenoiserConfig
    detail: CoarseConfig | None = None  # ours, not the paper's: see `M3ESR.draw`; None: the codec draws alone
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    segment_names: tuple[str, ...] = ()  # one per segmentation class for captions, "" for a class without a name


COMPACT_DENOISER = DenoiserConfig(
    sample_size=64,
    patch_size=2,
    in_channels=64,
    out_channels=64,
    num_layers=4,
    attention_head_dim=64,
    num_attention_heads=3,
    joint_attention_dim=128,
    pooled_projection_dim=128,
    pos_embed_max_size=48,
    dual_attention_layers=(0,),
    fused=True,
)
