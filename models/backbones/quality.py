"""The profile `quality`: SD3.5 medium with DiT4SR's weights, sampled as published.

Dimension key: B batch  C latent channels  H W pixels  h w latent grid
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.backbones import published
from models.backbones.coarse import CoarseEstimator
from models.backbones.dit4sr import DEFAULT_WEIGHTS, WEIGHTS_FILE, denoiser_folder, load_denoiser, variant_of
from models.backbones.fusion_files import fusion_file, load_fusion
from models.backbones.memory import Placement, TileSizes, choose_dtype, free_bytes
from models.backbones.options import BackboneOptions
from models.backbones.published import Extras, PublishedUpscaler, Ticks
from models.backbones.published_files import read_json
from models.backbones.sizes import PROCESS_SIDE
from models.backbones.text import PromptEncoder
from models.backbones.vae import TiledVae
from models.checkpoint import sha256
from models.denoising.guided import Condition, step_velocity
from models.denoising.sampling import euler, stock_sigmas
from models.denoising.transformer import DiffusionTransformer
from models.fusion.tiled import FusedTokens
from models.modalities.published import Captioner
from models.requests import UpscaleOptions
from models.runs import Stopwatch, resolve_device
from models.sources import SOURCES

PROFILE = "quality"
SD35 = SOURCES["sd35"].folder
T5_SUFFIX = "_3"  # of the folders of T5 and its tokenizer, which can be done without
WITHOUT_T5 = "T5 is not installed: prompts are read by CLIP alone and cut after 77 tokens."


@dataclass(frozen=True, kw_only=True)
class PublishedSampling:
    """DiT4SR's defaults."""

    num_steps: int = 40
    cfg_scale: float = 8.0
    overlap: float = 24 / 64  # of a tile
    color_correction: str = "adain"
    added_prompt: str = (
        "Cinematic, hyper sharpness, highly detailed, perfect without deformations, camera, hyper detailed photo - "
        "realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing. "
    )
    negative_prompt: str = (
        "motion blur, noisy, dotted, bokeh, pointed, CG Style, 3D render, unreal engine, blurring, dirty, messy, "
        "worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, lowres, chaotic"
    )
    process_side: int = PROCESS_SIDE


@dataclass(frozen=True)
class Schedule:
    """What the scheduler's config says; the stepping itself is `stock_sigmas` and `euler`, which keep no state."""

    shift: float = 3.0
    num_train_steps: int = 1000

    @classmethod
    def read(cls, path: Path) -> "Schedule":
        """Raises ValueError when the file is missing, or of another scheduler."""
        values = read_json(path)
        if (name := values.get("_class_name")) != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(f"{path} is of {name}; FlowMatchEulerDiscreteScheduler is needed")
        return cls(float(values.get("shift", 1.0)), int(values.get("num_train_timesteps", 1000)))

    def sigmas(self, num_steps: int) -> Tensor:
        return stock_sigmas(num_steps, self.shift, self.num_train_steps)


@dataclass(frozen=True)
class Prompt:
    """With guidance two rows, unconditional first."""

    text_embeddings: Tensor  # (B, L, J)
    pooled: Tensor  # (B, .)
    fused_tokens: FusedTokens | None = None


class QualityUpscaler(PublishedUpscaler):
    """Loaded networks of `quality`. Not for two threads at once; it keeps no state between images."""

    profile = PROFILE

    def __init__(
        self,
        denoiser: DiffusionTransformer,
        vae: TiledVae,
        text: PromptEncoder,
        schedule: Schedule,
        placement: Placement,
        *,
        sampling: PublishedSampling | None = None,
        extras: Extras | None = None,
    ):
        super().__init__(vae, placement, extras or Extras())
        self.denoiser, self.text, self.schedule = denoiser, text, schedule
        self.sampling: PublishedSampling = sampling or PublishedSampling()
        placement.add(denoiser)

    @classmethod
    def load(
        cls,
        root: Path,
        device: str = "auto",
        options: BackboneOptions | None = None,
        captioner: Captioner | None = None,
    ) -> "QualityUpscaler":
        """Reads DiT4SR and SD3.5 medium from `root`, which holds <owner>/<repository>/<path as on the hub>.

        T5, a coarse network and trained weights of our fusion are used if they are there.

        Raises:
            MissingWeightsError: names the command that fetches what is missing.
            ValueError: files that do not fit, or options that are unknown.
        """
        options = options or BackboneOptions()
        place = resolve_device(device)
        placement = Placement(options.offload, place)
        dtype = choose_dtype(options.dtype, place)
        check_installed(root, options.quality_weights)
        fusion_path = root / fusion_file(options.quality_weights)
        denoiser = load_denoiser(root, options.quality_weights, placement.home, dtype, fused=fusion_path.is_file())
        coarse = CoarseEstimator.find(root, placement)
        fusion = None
        if fusion_path.is_file():
            fusion = load_fusion(
                root, options.quality_weights, denoiser, dtype, placement, has_coarse=coarse is not None
            )
        denoiser.merge_projections()
        if options.compile:
            denoiser.compile()
        elif place.type == "cpu" and options.offload == "none":
            denoiser.pack_for_cpu()
        return cls(
            denoiser,
            TiledVae.load(root / SD35 / "vae", vae_dtype(dtype, place), placement),
            PromptEncoder.load(root / SD35, denoiser.config.joint_attention_dim, dtype, placement),
            Schedule.read(root / SD35 / "scheduler" / "scheduler_config.json"),
            placement,
            extras=Extras(
                fusion=fusion,
                coarse=coarse,
                captioner=captioner,
                options=options,
                checkpoint_sha256=sha256(denoiser_folder(root, options.quality_weights) / WEIGHTS_FILE),
            ),
        )

    @property
    def parts(self) -> list[nn.Module]:
        return [self.denoiser, self.vae.network, *(network for _, network in self.text.parts())]

    @property
    def traits(self) -> dict[str, Any]:
        encoders = ["CLIP-L", "CLIP-bigG", *(["T5"] if self.text.t5 else [])]
        return {"checkpoint": self.options.quality_weights, "text_encoders": encoders}

    def new_tiles(self) -> TileSizes:
        return TileSizes(notes=[] if self.text.t5 else [WITHOUT_T5])

    def read_prompt(self, lr_image: NDArray[np.float32], options: UpscaleOptions) -> tuple[str, Prompt]:
        """(caption, its encoding) for an LR image (H, W, 3).

        A prompt given takes the caption's place; with the modality text off, nothing is said at all.
        """
        caption, positive = "", ""
        if options.strength("text") > 0:
            caption = options.prompt.strip()
            if not caption and self.captioner is not None:
                caption = self.captioner.caption(torch.from_numpy(lr_image.copy()))
            positive = f"{caption} {self.sampling.added_prompt}" if caption else self.sampling.added_prompt
        texts = [positive]
        if self.cfg_scale(options) > 1:
            texts.insert(0, options.negative_prompt or self.sampling.negative_prompt)
        return caption, Prompt(*self.text.encode(texts))

    def posterior_generators(self, options: UpscaleOptions) -> list[torch.Generator] | None:
        """The released code draws the LR latent anew for each half of the guidance batch."""
        if not self.options.official_sampling:
            return None
        batch, device = 2 if self.cfg_scale(options) > 1 else 1, self.placement.device
        return [torch.Generator(device).manual_seed((options.seed + 1 + row) % 2**63) for row in range(batch)]

    def timesteps(self, num_steps: int) -> list[float]:
        return [1000 * sigma for sigma in self.schedule.sigmas(num_steps)[:-1].tolist()]

    def denoise(
        self,
        prompt: Prompt,
        work: Tensor,
        lr_latent: Tensor,
        options: UpscaleOptions,
        tiles: TileSizes,
        watch: Stopwatch,
    ) -> Tensor:
        """A step that runs out of memory is repeated with smaller tiles."""
        condition = Condition(
            lr_latent, prompt.text_embeddings, prompt.pooled, self.cfg_scale(options), prompt.fused_tokens
        )
        generator = self.noise_generator(options)
        noise = torch.randn(1, *lr_latent.shape[1:], generator=generator, device=generator.device).to(lr_latent.device)
        ticks = Ticks(watch)

        def velocity(noisy_latent: Tensor, sigma: float) -> Tensor:
            def run(side: int) -> Tensor:
                overlap = int(side * self.sampling.overlap)
                return step_velocity(
                    self.denoiser, noisy_latent, condition, sigma, tile=side, overlap=overlap, on_tile=ticks.on_tile
                )

            return tiles.fit("denoise", run)

        with self.placement.use(self.denoiser):
            tiles.choose("denoise", free_bytes(self.placement.device))
            return euler(velocity, noise, self.schedule.sigmas(watch.num_steps), ticks.on_step)


def vae_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float16 where bfloat16 is asked for: its 8 bits band skies, and the released code runs the VAE in float16."""
    return torch.float16 if dtype == torch.bfloat16 and device.type == "cuda" else dtype


def check_installed(root: Path, weights: str) -> None:
    """Raises MissingWeightsError when something is missing that is needed, ValueError on unknown weights."""
    variant_of(weights)
    source = weights.replace("_", "-")
    published.check_installed(
        root, PROFILE, ("sd35", source), T5_SUFFIX, PROFILE if weights == DEFAULT_WEIGHTS else source
    )
