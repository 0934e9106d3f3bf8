"""What the public backbones have in common: one image through sizes, coarse estimate, prompt, VAE, denoiser, colours.

Dimension key: B batch  C latent channels  H W pixels  h w latent grid
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.backbones.coarse import CoarseEstimator
from models.backbones.guidance import GRID, Guidance
from models.backbones.memory import Placement, TileSizes
from models.backbones.options import BackboneOptions
from models.backbones.published_files import list_some
from models.backbones.sizes import VAE_SCALE, enlarge, work_sizes
from models.backbones.vae import TiledVae
from models.catalogue import MissingWeightsError, missing
from models.colour import correct_colour
from models.denoising.linear import count_parameters
from models.fusion.image_tokens import ImageTokenFusion
from models.fusion.joint import JointFusion
from models.fusion.tiled import FusedTokens
from models.modalities.published import Captioner
from models.preview import OnPreview
from models.requests import OnProgress, UpscaleOptions, UpscaleResult
from models.resize import resize
from models.runs import Stopwatch, check_image, measure_trust, output_size, to_answer, to_tensor


class Sampling(Protocol):
    """Published defaults that every backbone has."""

    @property
    def num_steps(self) -> int: ...
    @property
    def cfg_scale(self) -> float: ...
    @property
    def color_correction(self) -> str: ...
    @property
    def process_side(self) -> int: ...


@dataclass(frozen=True)
class View:
    """What a fusion may look at."""

    lr: Tensor  # (1, 3, H, W) in [0, 1], as it was sent
    work: Tensor  # (1, 3, 8h, 8w) in [0, 1]
    lr_latent: Tensor  # (1 or B, C, h, w)
    uncertainty: NDArray[np.float32] | None  # (h/2, w/2), None without a coarse network


@dataclass(frozen=True)
class Fused:
    """A prompt with what the fusion adds to it, and what is told of the fusion."""

    prompt: Any
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # expert weights per patch, in [0, 1]
    temperatures: dict[str, list[float]] = field(default_factory=dict)  # "sigma" and one list per modality
    is_installed: bool = False


@dataclass(frozen=True)
class Fusion:
    """Our trained fusion and what it reads. beside: networks whose layers it borrows."""

    network: JointFusion | ImageTokenFusion
    guidance: Guidance
    beside: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What every backbone is loaded with beside its own networks, in the order of a run."""

    fusion: Fusion | None = None
    coarse: CoarseEstimator | None = None
    captioner: Captioner | None = None
    options: BackboneOptions = field(default_factory=BackboneOptions)
    checkpoint_sha256: str = ""


@dataclass
class Ticks:
    """Tells the progress of denoising, tile by tile and step by step."""

    watch: Stopwatch
    num_done: int = 0

    def on_tile(self, share: float) -> None:
        self.tell(share)

    def on_step(self, step: int, *_: Tensor) -> None:
        self.num_done = step
        self.tell(0.0)

    def tell(self, share: float) -> None:
        self.watch.tell("denoising", self.num_done, 0.1 + 0.8 * (self.num_done + share) / self.watch.num_steps)


class PublishedUpscaler(ABC):
    """A loaded public backbone. Not for two threads at once; it keeps no state between images."""

    profile: ClassVar[str]
    multiple: int = VAE_SCALE  # sides of the work image are multiples of this many pixels
    sampling: Sampling

    def __init__(self, vae: TiledVae, placement: Placement, extras: Extras):
        self.vae, self.placement = vae, placement
        self.fusion, self.coarse, self.captioner = extras.fusion, extras.coarse, extras.captioner
        self.options, self.sha256 = extras.options, extras.checkpoint_sha256
        if self.fusion is not None:
            self.multiple = GRID  # whole tokens
            self.fusion.network.to(placement.device)  # small beside the denoiser, and asked at every step

    @property
    @abstractmethod
    def parts(self) -> list[nn.Module]:
        """The backbone's own networks; those that denoise come first."""

    @property
    @abstractmethod
    def traits(self) -> dict[str, Any]:
        """What `describe` tells of this backbone alone, "checkpoint" among it."""

    @property
    def networks(self) -> list[nn.Module]:
        fusion = [self.fusion.network, *self.fusion.guidance.networks] if self.fusion else []
        return [*self.parts, *([self.coarse.network] if self.coarse else []), *fusion]

    def describe(self) -> dict[str, Any]:
        """What is loaded, for the job's record and the log."""
        return {
            "profile": self.profile,
            "sha256": self.sha256,
            "num_parameters": sum(map(count_parameters, self.networks)),
            "device": str(self.placement.device),
            "dtype": str(next(self.parts[0].parameters()).dtype).removeprefix("torch."),
            "offload": self.placement.offload,
            "fusion": "trained" if self.fusion else "not installed",
        } | self.traits

    @abstractmethod
    def read_prompt(self, lr_image: NDArray[np.float32], options: UpscaleOptions) -> tuple[str, Any]:
        """(what is said of the picture, what `denoise` needs of it)."""

    @abstractmethod
    def denoise(
        self, prompt: Any, work: Tensor, lr_latent: Tensor, options: UpscaleOptions, tiles: TileSizes, watch: Stopwatch
    ) -> Tensor:
        """The clean latent (1, C, h, w) of the `work` image (1, 3, 8h, 8w) in [0, 1]."""

    @abstractmethod
    def timesteps(self, num_steps: int) -> list[float]:
        """Those at which the denoiser is asked, 0..1000, falling."""

    def fuse(self, prompt: Any, view: View, options: UpscaleOptions, watch: Stopwatch) -> Fused:
        """The paper's part: routes the whole picture once; the experts are asked tile by tile.

        Without trained weights of it, or with every modality off, the backbone runs as published.
        """
        if self.fusion is None:
            return Fused(prompt)
        network = self.fusion.network
        names = [name for name in network.config.fusion.modalities if options.strength(name) > 0]
        if not names:
            return Fused(prompt, is_installed=True)
        with watch.stage("routing", 0.1):
            assert view.uncertainty is not None  # a fusion is not loaded without a coarse network
            uncertainty = torch.from_numpy(view.uncertainty)[None, None].to(view.work)
            small = resize(view.work, (4 * uncertainty.shape[-2], 4 * uncertainty.shape[-1])).clamp(0, 1)
            routed = network.router(small, uncertainty)
            weights = {name: options.strength(name) * routed[name] for name in names}
            modalities = self.fusion.guidance.read(view.work, names)
            timesteps = self.timesteps(watch.num_steps)
            with self.placement.use(*self.fusion.beside):
                found = network.temperatures(torch.tensor(timesteps, device=view.work.device))
        sigmas = [timestep / 1000 for timestep in timesteps]
        return Fused(
            replace(prompt, fused_tokens=FusedTokens(network, view.lr_latent[:1], modalities, weights)),
            maps={name: routed[name][0].cpu().numpy() for name in names},
            temperatures={"sigma": sigmas, **{name: found[name].tolist() for name in names}},
            is_installed=True,
        )

    @abstractmethod
    def new_tiles(self) -> TileSizes:
        """The published tile sides, and in its notes what this installation lacks."""

    @torch.no_grad()
    def upscale(
        self,
        lr_image: NDArray[np.float32],
        options: UpscaleOptions,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
    ) -> UpscaleResult:
        """lr_image (H, W, 3) in [0, 1], any size from 1x1.

        on_progress: told at every stage, tile and step; may raise to cancel. on_preview: told the coarse image, when a
        coarse network is installed; it changes nothing of the result.
        """
        check_image(lr_image)
        height, width = lr_image.shape[:2]
        size = output_size(width, height, options)
        num_steps = options.num_steps or self.sampling.num_steps
        watch, tiles = Stopwatch(on_progress, 1, num_steps), self.new_tiles()
        upscale = max(1.0, size[0] / width, size[1] / height)
        sizes = work_sizes(height, width, upscale, self.sampling.process_side, self.multiple)
        lr = to_tensor(lr_image, self.placement.device)
        with watch.stage("coarse", 0.0):
            work = enlarge(lr, sizes)
            maps = self.coarse.maps(lr, sizes, work, size, on_preview) if self.coarse else {}
        with watch.stage("perception", 0.02):
            caption, prompt = self.read_prompt(lr_image, options)
        with watch.stage("encoding", 0.08):
            tick = partial(tell_tile, watch, "encoding", 0.08, 0.02)
            lr_latent = self.vae.encode(work, tiles, self.posterior_generators(options), tick)
        fused = self.fuse(prompt, View(lr, work, lr_latent, maps.get("uncertainty")), options, watch)
        with watch.stage("denoising", 0.1):
            latent = self.denoise(fused.prompt, work, lr_latent, options, tiles, watch)
        with watch.stage("output", 0.9):
            decoded = self.vae.decode(latent, tiles, partial(tell_tile, watch, "output", 0.9, 0.08))
            sr = correct_colour(decoded, work, options.color_correction or self.sampling.color_correction)
            answer = to_answer(sr, lr_image, size)
            trust = measure_trust(answer, lr_image, maps.get("uncertainty"))
        watch.tell("output", num_steps, 1.0)
        return UpscaleResult(
            sr_image=answer,
            maps=maps | fused.maps,
            temperatures=fused.temperatures,
            trust=trust,
            timings=watch.seconds,
            caption=caption,
            seed=options.seed,
            num_steps=num_steps,
            fusion="trained" if fused.is_installed else "not installed",
            notes=tuple(tiles.notes),
        )

    def cfg_scale(self, options: UpscaleOptions) -> float:
        return self.sampling.cfg_scale if options.cfg_scale is None else options.cfg_scale

    def posterior_generators(self, options: UpscaleOptions) -> list[torch.Generator] | None:
        """For the official sampling, which draws the LR latent from the VAE's posterior; None takes the mode."""
        if not self.options.official_sampling:
            return None
        return [torch.Generator(self.placement.device).manual_seed((options.seed + 1) % 2**63)]

    def noise_generator(self, options: UpscaleOptions) -> torch.Generator:
        """The request's own; on the CPU unless sampling officially, so that a seed gives one picture everywhere."""
        device = self.placement.device if self.options.official_sampling else torch.device("cpu")
        return torch.Generator(device).manual_seed(options.seed % 2**63)


def check_installed(root: Path, profile: str, sources: Sequence[str], optional: str, asked: str) -> None:
    """Raises MissingWeightsError when a source lacks a part whose name does not end with `optional`.

    asked: what `m3esr models pull` is told to get.
    """
    lacking = [path for name in sources for path in missing(root, name) if not path.endswith(optional)]
    if lacking:
        raise MissingWeightsError(
            f"the weights of '{profile}' are not in {root}: {list_some(lacking)} missing. "
            f"Get them with: m3esr models pull {asked}"
        )


def tell_tile(watch: Stopwatch, stage: str, begin: float, length: float, share: float) -> None:
    watch.tell(stage, 0, begin + length * share)
