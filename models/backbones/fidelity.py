"""The profile `fidelity`: Stable Diffusion 2.1 with SeeSR's weights, sampled as published.

Dimension key: B batch  C latent channels  H W pixels  h w latent grid  L text tokens
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
from models.backbones.fusion_files import SEESR, load_image_fusion
from models.backbones.memory import Placement, TileSizes, choose_dtype
from models.backbones.options import BackboneOptions
from models.backbones.pooled_vae import PooledVae
from models.backbones.published import Extras, PublishedUpscaler, Ticks
from models.backbones.quality import vae_dtype
from models.backbones.sd21 import (
    CONTROLNET,
    SD21,
    UNET,
    WEIGHTS_FILE,
    TextEncoder,
    load_seesr,
    read_schedule,
)
from models.backbones.sizes import PROCESS_SIDE
from models.checkpoint import sha256
from models.denoising.seesr.guided import Condition, Networks, step_epsilon
from models.denoising.seesr.networks import SeeSRControlNet, SeeSRUNet
from models.denoising.seesr.sampling import Schedule, add_noise, ddpm
from models.fusion.tiled import FusedTokens
from models.modalities.dape.extractor import PromptExtractor
from models.modalities.dape.network import TaggerConfig
from models.modalities.dape.weights import LORA_FILE, RAM_FILE
from models.modalities.published import Captioner
from models.requests import UpscaleOptions
from models.runs import Stopwatch, resolve_device, to_tensor

PROFILE = "fidelity"
WITHOUT_DAPE = (
    "RAM is not installed: nothing names what the picture shows, and one token of zeros stands in for the image tokens "
    "that SeeSR was trained with."
)


@dataclass(frozen=True, kw_only=True)
class PublishedSampling:
    """SeeSR's defaults."""

    num_steps: int = 50
    cfg_scale: float = 5.5
    conditioning_scale: float = 1.0
    start_timestep: int = 999
    """How much noise the LR latent gets to start from, although the first step is at 981."""
    tile: int = 96  # latent cells
    overlap: int = 4
    vae_encoder_tile: int = 128  # 1024 px
    vae_decoder_tile: int = 224
    color_correction: str = "adain"
    added_prompt: str = "clean, high-resolution, 8k"
    negative_prompt: str = "dotted, noise, blur, lowres, smooth"
    process_side: int = PROCESS_SIDE


@dataclass(frozen=True)
class Prompt:
    text_embeddings: Tensor  # (B, L, J); with guidance two rows, unconditional first
    image_tokens: Tensor | None  # (1, 145, 512)
    fused_tokens: FusedTokens | None = None


class FidelityUpscaler(PublishedUpscaler):
    """Loaded networks of `fidelity`. Not for two threads at once; it keeps no state between images."""

    profile = PROFILE

    def __init__(
        self,
        networks: Networks,
        vae: PooledVae,
        text: TextEncoder,
        schedule: Schedule,
        placement: Placement,
        *,
        prompts: PromptExtractor | None = None,
        sampling: PublishedSampling | None = None,
        extras: Extras | None = None,
    ):
        super().__init__(vae, placement, extras or Extras())
        self.seesr, self.text, self.schedule, self.prompts = networks, text, schedule, prompts
        self.sampling: PublishedSampling = sampling or PublishedSampling()
        placement.add(networks.unet)
        placement.add(networks.controlnet)
        self.prompt_placement = placement.whole()
        if prompts is not None:
            self.prompt_placement.add(prompts.tagger)

    @classmethod
    def load(
        cls,
        root: Path,
        device: str = "auto",
        options: BackboneOptions | None = None,
        captioner: Captioner | None = None,
        *,
        tagger: TaggerConfig | None = None,
    ) -> "FidelityUpscaler":
        """Reads SeeSR and SD 2.1 from `root`, which holds <owner>/<repository>/<path as on the hub>.

        RAM (for tags and image tokens) and a coarse network are used if they are there.

        Args:
            captioner: its captions take the place of RAM's tags in the prompt, as in the paper.
            tagger: sizes of RAM; its checkpoint does not hold them. None: as published.

        Raises:
            MissingWeightsError: names the command that fetches what is missing.
            ValueError: files that do not fit, or options that are unknown.
        """
        options = options or BackboneOptions()
        place = resolve_device(device)
        placement = Placement(options.offload, place)
        dtype = choose_dtype(options.dtype, place)
        check_installed(root)
        networks = Networks(
            load_seesr(SeeSRUNet, root / UNET, placement.home, dtype),
            load_seesr(SeeSRControlNet, root / CONTROLNET, placement.home, dtype),
        )
        coarse = CoarseEstimator.find(root, placement)
        if options.compile:
            networks.unet.compile()
            networks.controlnet.compile()
        return cls(
            networks,
            PooledVae.load(root / SD21 / "vae", vae_dtype(dtype, place), placement.whole()),
            TextEncoder.load(root / SD21, dtype, placement),
            read_schedule(root),
            placement,
            prompts=PromptExtractor.load(root, tagger) if (root / RAM_FILE).is_file() else None,
            extras=Extras(
                fusion=load_image_fusion(root, dtype, placement, has_coarse=coarse is not None),
                coarse=coarse,
                captioner=captioner,
                options=options,
                checkpoint_sha256=sha256(root / UNET / WEIGHTS_FILE),
            ),
        )

    @property
    def parts(self) -> list[nn.Module]:
        prompts = [self.prompts.tagger] if self.prompts else []
        return [self.seesr.unet, self.seesr.controlnet, self.vae.network, self.text.network, *prompts]

    @property
    def traits(self) -> dict[str, Any]:
        return {"checkpoint": SEESR, "image_tokens": "RAM with DAPE" if self.prompts else "none"}

    def new_tiles(self) -> TileSizes:
        sampling = self.sampling
        sides = {"denoise": sampling.tile, "encode": sampling.vae_encoder_tile, "decode": sampling.vae_decoder_tile}
        return TileSizes(sides, [] if self.prompts else [WITHOUT_DAPE])

    def read_prompt(self, lr_image: NDArray[np.float32], options: UpscaleOptions) -> tuple[str, Prompt]:
        """Tags, or a caption in their place, then the prompt given, then the published words.

        With the modality text off nothing is said; the image tokens stay, for SeeSR is nothing without them.
        """
        tags, tokens = "", None
        if self.prompts is not None:
            with self.prompt_placement.use(self.prompts.tagger):
                seen = self.prompts.read(to_tensor(lr_image, self.placement.device))
            tags, tokens = ", ".join(seen.tags), seen.tokens
        said, positive = "", ""
        if options.strength("text") > 0:
            if self.captioner is not None:
                tags = self.captioner.caption(torch.from_numpy(np.array(lr_image, np.float32)))
            said = ", ".join(part for part in (tags, options.prompt.strip()) if part)
            # the released script leaves the empty place of a prompt that was not given; the text encoder hears it
            positive = f"{tags}, {options.prompt.strip()},{self.sampling.added_prompt}"
        texts = [positive]
        if self.cfg_scale(options) > 1:
            texts.insert(0, options.negative_prompt or self.sampling.negative_prompt)
        return said, Prompt(self.text.encode(texts), tokens)

    def timesteps(self, num_steps: int) -> list[float]:
        return [float(timestep) for timestep in self.schedule.timesteps(num_steps)]

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
            work,
            prompt.text_embeddings,
            prompt.image_tokens,
            self.cfg_scale(options),
            self.sampling.conditioning_scale,
            prompt.fused_tokens,
        )
        ticks = Ticks(watch)

        def epsilon(noisy_latent: Tensor, timestep: int) -> Tensor:
            def run(side: int) -> Tensor:
                overlap = self.sampling.overlap
                return step_epsilon(
                    self.seesr, noisy_latent, condition, timestep, tile=side, overlap=overlap, on_tile=ticks.on_tile
                )

            return tiles.fit("denoise", run)

        generator = self.noise_generator(options)
        noise = torch.randn(lr_latent.shape, generator=generator, device=generator.device).to(lr_latent)
        start = add_noise(lr_latent, noise, self.sampling.start_timestep, self.schedule)
        with self.placement.use(self.seesr.unet, self.seesr.controlnet):
            return ddpm(epsilon, start, self.schedule, watch.num_steps, generator, ticks.on_step)


def check_installed(root: Path) -> None:
    """Raises MissingWeightsError when something is missing that cannot be done without; RAM can."""
    published.check_installed(root, PROFILE, ("sd21", "seesr"), LORA_FILE, PROFILE)
