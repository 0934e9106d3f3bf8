"""The one door to the networks: load a profile once, then upscale any number of images with it."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from models.backbones.options import BackboneOptions
from models.catalogue import MissingWeightsError
from models.checkpoint import read_config, read_tensors, sha256
from models.colour import correct_colour
from models.configs import VISUAL_MODALITIES, M3ESRConfig, SamplerConfig
from models.deblock import even_phases
from models.denoising.sampling import flow_sigmas
from models.modalities.caption import describe
from models.modalities.text import tokenize
from models.network import M3ESR, SCALE
from models.precision import bf16_pays, choose_dtype
from models.preview import OnPreview, PreviewCanvas
from models.region import CELLS, Region, crop, denoise
from models.requests import OnProgress, UpscaleOptions, UpscaleResult
from models.resize import resize
from models.routing.calibration import UncertaintyCalibration, load_calibration, measure
from models.routing.coarse import reconcile
from models.runs import Stopwatch, check_image, measure_trust, output_size, resolve_device, to_answer, to_tensor
from models.tiling import BlendAccumulator, plan_tiles

WEIGHTS = Path(__file__).parent / "weights"
PATCH = 4  # LR pixels per token side
REGION, REGION_OVERLAP = 48, 4  # tokens per side: 192 LR px; each region repeats a margin, so few large ones cost less
MIN_SIDE = 16  # LR pixels; smaller images are continued at their border
OVERVIEW_SIDE = 128
BACKBONES = ("quality", "fidelity")


class Upscaler:
    """A loaded network. Not for two threads at once; it keeps no state between images."""

    def __init__(self, network: M3ESR, tokenizer: Tokenizer, profile: str, source: Path | None = None):
        self.network = network.eval().requires_grad_(False)
        self.tokenizer, self.profile, self.source = tokenizer, profile, source
        self.config: M3ESRConfig = network.config
        self.sha256 = sha256(source) if source is not None else ""
        self.calibration: UncertaintyCalibration | None = None

    @classmethod
    def load(
        cls,
        profile: str = "compact",
        device: str = "cpu",
        checkpoint: Path | None = None,
        dtype: str = "fp32",
        backbone: BackboneOptions | None = None,
        *,
        with_calibration: bool = True,
    ) -> Any:
        """The networks of a profile: this class, or for a public backbone another one with the same methods.

        Args:
            checkpoint: a folder with `<profile>.safetensors` and `tokenizer.json`, by default the repository's; for a
                public backbone a models folder instead of `backbone.models_dir`.
            dtype: auto, bf16, fp16 or fp32, of `compact`; see models.precision.
            backbone: how a public backbone is loaded and held, its dtype included.
            with_calibration: read that of the uncertainty, if it is there.

        Raises:
            ValueError: tells what to do when the profile is unknown, its weights are broken or missing, or the device
                has no such dtype.
            MissingWeightsError: names the command that fetches the weights of a public backbone.
        """
        if profile in BACKBONES:
            options = backbone or BackboneOptions()
            return load_backbone(profile, checkpoint or options.root, device, options)
        folder = checkpoint if checkpoint is not None else WEIGHTS / profile
        path, vocabulary = folder / f"{profile}.safetensors", folder / "tokenizer.json"
        for needed in (path, vocabulary):
            if not needed.exists():
                raise ValueError(f"profile {profile!r} is not installed: {needed} is missing")
        network = M3ESR(read_config(path, M3ESRConfig))
        network.load_state_dict(read_tensors(path))
        network.to(resolve_device(device)).eval()
        tile = network.config.sampler.tile
        network.use_dtype(choose_dtype(dtype, network.codec.basis.device, lambda: bf16_pays(network.denoiser, tile)))
        upscaler = cls(network, Tokenizer.from_file(str(vocabulary)), profile, path)
        if with_calibration:
            upscaler.calibration = load_calibration(folder, upscaler.sha256)
        return upscaler

    @property
    def device(self) -> torch.device:
        return self.network.codec.basis.device

    def describe(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "checkpoint": self.source.name if self.source else "",
            "sha256": self.sha256,
            "num_parameters": sum(p.numel() for p in self.network.parameters()),
            "device": str(self.device),
            "dtype": str(self.network.compute_dtype).removeprefix("torch."),
        }

    @torch.inference_mode()
    def upscale(
        self,
        lr_image: NDArray[np.float32],
        options: UpscaleOptions,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
    ) -> UpscaleResult:
        """lr_image (H, W, 3) in [0, 1], any size from 1x1. Beyond input and output, memory is that of one region.

        on_preview: told the coarse image, small, after each region's; it changes nothing of the result.
        """
        check_image(lr_image)
        height, width = lr_image.shape[:2]
        lr = to_tensor(lr_image, self.device)
        lr = pad_to(lr, max(height, MIN_SIDE), max(width, MIN_SIDE))
        rows, columns = math.ceil(lr.shape[-2] / PATCH), math.ceil(lr.shape[-1] / PATCH)
        lr = pad_to(lr, rows * PATCH, columns * PATCH)
        plan = plan_tiles(rows, columns, REGION, REGION_OVERLAP, even=True)
        num_steps = count_steps(options, self.config.sampler)
        watch = Stopwatch(on_progress, len(plan), num_steps)
        caption, text_ids, null_ids = self.read_text(lr[..., :height, :width], options, watch)
        noise = self.noise(rows, columns, options.seed)
        image = BlendAccumulator(plan, rows, columns, REGION_OVERLAP, scale=PATCH * SCALE)
        maps = BlendAccumulator(plan, rows, columns, REGION_OVERLAP)
        sigmas = flow_sigmas(num_steps, self.config.sampler.shift) if num_steps else torch.zeros(1)
        names = tuple(name for name in VISUAL_MODALITIES if num_steps and options.strength(name) > 0)
        canvas = None
        if on_preview is not None:
            canvas = PreviewCanvas(lr[..., :height, :width], output_size(width, height, options), len(plan), on_preview)
        for index, tile in enumerate(plan):
            watch.region = index
            region = Region(crop(lr, tile, PATCH), crop(noise, tile, CELLS), text_ids, null_ids)
            show = canvas and partial(canvas.add, tile.top * PATCH, tile.left * PATCH, scale=SCALE)
            sr_region, region_maps = self.run_region(region, names, options, sigmas, watch, show)
            image.add(tile, sr_region)
            maps.add(tile, region_maps)
        watch.region = len(plan) - 1
        with watch.stage("output", 0.97):
            # uncertainty comes first in the stack of maps, calibrated before raw
            sr = self.finish(image.result(), lr_image, options)
            stacked = maps.result()[0, :, : math.ceil(height / PATCH), : math.ceil(width / PATCH)].cpu().numpy()
            kinds = ("uncertainty", "uncertainty_raw") if self.calibration else ("uncertainty",)
            found = dict(zip((*kinds, *names), stacked, strict=True))
            trust = measure_trust(sr, lr_image, found["uncertainty"])
        watch.tell("output", num_steps, 1.0)
        return UpscaleResult(
            sr_image=sr,
            maps=found,
            temperatures=self.temperatures(sigmas, names, options),
            trust=trust,
            timings=watch.seconds,
            caption=caption,
            seed=options.seed,
            num_steps=num_steps,
            fusion="trained" if num_steps else "skipped",
        )

    def run_region(
        self,
        region: Region,
        names: tuple[str, ...],
        options: UpscaleOptions,
        sigmas: Tensor,
        watch: Stopwatch,
        show_coarse: Callable[[Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """SR image (1, 3, 16 rows, 16 columns) of a region and its maps (1, 1 + M, rows, columns), U first.

        With a calibration its map comes before U. Without sampling steps the coarse image is the SR image.
        """
        network = self.network
        with watch.stage("coarse", 0.0):
            upscaled, coarse_sr, uncertainty_map = network.estimate(region.lr_image)
            if show_coarse is not None:
                show_coarse(coarse_sr)
            uncertainty = self.uncertainty_maps(region.lr_image, upscaled, coarse_sr, uncertainty_map)
            if watch.num_steps == 0:
                return self.compose(coarse_sr, region.lr_image, upscaled, uncertainty_map, options), uncertainty
        with watch.stage("perception", 0.1):
            modalities, tokens = network.render(region.lr_image, coarse_sr, names) if names else ({}, None)
        strengths = {name: options.strength(name) for name in names}
        cfg_scale = options.cfg_scale or 1.0

        def on_step(step: int) -> None:
            watch.tell("denoising", step, 0.2 + 0.75 * step / watch.num_steps)

        with watch.stage("routing", 0.15):
            crops = region.prepare(
                network, upscaled, uncertainty_map, modalities, tokens, strengths, cfg_scale, options.intervention
            )
        with watch.stage("denoising", 0.2):
            sr = denoise(network, region, crops, upscaled, coarse_sr, uncertainty_map, sigmas, cfg_scale, on_step)
            sr = self.compose(sr, region.lr_image, upscaled, uncertainty_map, options)
        weights = [crops.expert_weights[name][:, None] for name in names]
        return sr, torch.cat([uncertainty, *weights], 1)

    def uncertainty_maps(self, lr_image: Tensor, upscaled: Tensor, coarse_sr: Tensor, raw: Tensor) -> Tensor:
        """U (1, 1, rows, columns); where the weights come with a calibration, the expected error before it."""
        if self.calibration is None:
            return raw
        return torch.cat([self.calibration.predict(measure(lr_image, upscaled, coarse_sr, raw)), raw], 1)

    def compose(
        self, sr: Tensor, lr_image: Tensor, upscaled: Tensor, uncertainty_map: Tensor, options: UpscaleOptions
    ) -> Tensor:
        """What the networks restored, joined to the interpolation, in its colours: (1, 3, H, W) in [0, 1]."""
        sr = upscaled + self.restored_share(uncertainty_map, upscaled) * (sr - upscaled)
        sr = correct_colour(sr.clamp(0, 1), upscaled, options.color_correction or "wavelet")
        if share := self.config.sampler.consistency:
            sr = reconcile(sr, lr_image, share)
        return sr.clamp(0, 1)

    def restored_share(self, uncertainty_map: Tensor, upscaled: Tensor) -> Tensor:
        """U (1, 1, h, w) and Up-Scale(x) (1, 3, 16 h, 16 w) -> the share of the restoration that is taken, in [0, 1).

        The rest is Up-Scale(x). Where coarse network and interpolation agree, or where the LR image has one colour all
        around, there is nothing to restore, and what the networks still add is their own error: so flat areas stay flat
        and white stays white. The share is 0.5 at each threshold and 0.94 at 4 times that.
        """
        sampler, patch = self.config.sampler, PATCH * SCALE
        highest, lowest = F.max_pool2d(upscaled, patch), -F.max_pool2d(-upscaled, patch)
        contrast = F.max_pool2d((highest - lowest).amax(1, keepdim=True), 3, stride=1, padding=1)
        share = uncertainty_map**2 / (uncertainty_map**2 + sampler.restoration_threshold**2)
        share = share * contrast**2 / (contrast**2 + sampler.flat_threshold**2)
        return F.interpolate(share, scale_factor=patch, mode="bilinear", align_corners=False)

    def read_text(self, lr: Tensor, options: UpscaleOptions, watch: Stopwatch) -> tuple[str, Tensor, Tensor]:
        """(caption, its token ids (1, L), ids to guide away from): one caption for the image."""
        negative = tokenize(self.tokenizer, [options.negative_prompt], self.config.text).to(self.device)
        if options.strength("text") == 0 or watch.num_steps == 0:
            return "", torch.zeros_like(negative), negative
        with watch.stage("perception", 0.0):
            side = max(lr.shape[-2:])
            size = [max(PATCH, round(s * min(1, OVERVIEW_SIDE / side) / PATCH) * PATCH) for s in lr.shape[-2:]]
            overview = resize(lr, (size[0], size[1])).clamp(0, 1)
            probabilities = self.network.perception(overview).segmentation.softmax(1)[0]
            found = describe(lr[0], probabilities, self.config.segment_names)
        caption = ", ".join(part for part in (options.prompt.strip(), found) if part)
        return caption, tokenize(self.tokenizer, [caption], self.config.text).to(self.device), negative

    def noise(self, rows: int, columns: int, seed: int) -> Tensor:
        """The noise of the whole image, so that a region's noise does not depend on how the image was cut."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        channels = self.config.codec.num_channels
        return torch.randn(1, channels, 2 * rows, 2 * columns, generator=generator).to(self.device)

    def finish(self, image: Tensor, lr_image: NDArray[np.float32], options: UpscaleOptions) -> NDArray[np.float32]:
        """Crops the padding, resizes to the size asked for, keeps greyscale grey: (H, W, 3) in [0, 1]."""
        height, width = lr_image.shape[:2]
        image = even_phases(image[..., : height * SCALE, : width * SCALE], self.config.sampler.deblocking)
        return to_answer(image, lr_image, output_size(width, height, options))

    def temperatures(self, sigmas: Tensor, names: tuple[str, ...], options: UpscaleOptions) -> dict[str, list[float]]:
        if not names:
            return {}
        levels = sigmas[:-1].to(self.device)  # the levels at which the network was asked
        values = self.network.temperatures(levels, options.intervention.temperature)
        return {"sigma": levels.tolist(), **{name: values[name].tolist() for name in names}}


def count_steps(options: UpscaleOptions, sampler: SamplerConfig) -> int:
    """Sampling steps of a request; 0 is the coarse image alone. A number given overrides the preset."""
    if options.num_steps is not None:
        return options.num_steps
    return {"fast": 0, "balanced": sampler.num_steps, "best": sampler.best_num_steps}[options.preset]


def load_backbone(profile: str, root: Path, device: str, options: BackboneOptions) -> Any:
    """The upscaler of a public backbone; its libraries are imported only now."""
    if not root.is_dir():
        raise MissingWeightsError(
            f"the models folder {root} does not exist. Fill it with: m3esr models pull {profile}, "
            "or name another with M3ESR_MODELS_DIR"
        )
    from models.backbones.captioner import PlacedCaptioner
    from models.backbones.fidelity import FidelityUpscaler
    from models.backbones.published_files import silence_libraries
    from models.backbones.quality import QualityUpscaler

    silence_libraries()
    kinds = {"quality": QualityUpscaler, "fidelity": FidelityUpscaler}
    captioner = PlacedCaptioner.load(root, options, resolve_device(device))
    return kinds[profile].load(root, device, options, captioner)


def pad_to(image: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), mode="replicate")
