"""The theorem's quantities on real pairs: expert weights, and the marginal gain of each modality at each patch.

Theorem 3.1 takes Delta_i^m = -<grad_z loss(z_static), E_m> with z_static = z + sum_m w_bar^m E_m. As the fused tokens
are h = z + sum_m w_i^m E_m, this is -d loss / d w_i^m at w = w_bar, which automatic differentiation gives through the
whole sampler; with several steps it is the sum over them.

Loss: mean absolute error over the RGB pixels of the restored image against the HR image, both in [0, 1], after the
restoration is joined to the interpolation and before colour correction and deblocking, which have no gradient here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.errors import EvaluationError
from models.configs import VISUAL_MODALITIES
from models.denoising.sampling import flow_sigmas
from models.network import M3ESR
from models.pipeline import Upscaler, count_steps
from models.region import Crops, Region, denoise
from models.requests import UpscaleOptions
from models.runs import Stopwatch

LOSS = "mean |SR - HR| over RGB pixels in [0, 1], before colour correction and deblocking"
PATCH = 16  # HR pixels per token side


@dataclass(frozen=True)
class Scene:
    """One pair as the sampler sees it: all that does not depend on the expert weights."""

    region: Region
    upscaled: Tensor
    coarse_sr: Tensor
    uncertainty_map: Tensor
    modalities: dict[str, Tensor]
    tokens: Tensor  # behind the modalities
    hr_image: Tensor  # (1, 3, 16 rows, 16 columns)
    options: UpscaleOptions


@dataclass(frozen=True)
class PatchGains:
    """weights, gains: (M, P) per modality and patch, in the order of VISUAL_MODALITIES. Losses as LOSS says."""

    weights: NDArray[np.float64]
    gains: NDArray[np.float64]
    static_loss: float  # every weight at w_bar
    dynamic_loss: float  # the router's weights


class GainMeter:
    """Measures scenes with one network. Not for two threads."""

    def __init__(self, upscaler: Upscaler, options: UpscaleOptions):
        self.upscaler, self.network, self.options = upscaler, require_fusion(upscaler), options
        num_steps = count_steps(options, upscaler.config.sampler)
        if not num_steps:
            raise EvaluationError(
                "preset fast runs no experts, so there is nothing to audit; use balanced or num_steps"
            )
        self.sigmas = flow_sigmas(num_steps, upscaler.config.sampler.shift)

    @torch.no_grad()
    def see(self, lr_image: NDArray[np.float32], hr_image: NDArray[np.float32]) -> Scene:
        """lr_image (4 rows, 4 columns, 3), hr_image four times that, both in [0, 1]: at most one region."""
        lr, hr = (
            torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(self.upscaler.device)
            for image in (lr_image, hr_image)
        )
        watch = Stopwatch(None, 1, 1)
        _, text_ids, null_ids = self.upscaler.read_text(lr, self.options, watch)
        noise = self.upscaler.noise(lr.shape[-2] // 4, lr.shape[-1] // 4, self.options.seed)
        upscaled, coarse_sr, uncertainty_map = self.network.estimate(lr)
        modalities, tokens = self.network.render(lr, coarse_sr, VISUAL_MODALITIES)
        region = Region(lr, noise, text_ids, null_ids)
        return Scene(region, upscaled, coarse_sr, uncertainty_map, modalities, tokens, hr, self.options)

    @torch.no_grad()
    def route(self, scene: Scene) -> dict[str, Tensor]:
        """The weights (1, rows, columns) that the pipeline would use for this scene, modalities and all."""
        return dict(self.prepare(scene, None).expert_weights)

    def prepare(self, scene: Scene, weights: Mapping[str, Tensor] | None) -> Crops:
        return scene.region.prepare(
            self.network,
            scene.upscaled,
            scene.uncertainty_map,
            scene.modalities,
            scene.tokens,
            dict.fromkeys(scene.modalities, 1.0),
            self.options.cfg_scale or 1.0,
            self.options.intervention,
            None if weights is None else dict(weights),
        )

    def restore(self, scene: Scene, weights: Mapping[str, Tensor] | None) -> Tensor:
        """SR image (1, 3, 16 rows, 16 columns) with these expert weights; None: the router's."""
        crops = self.prepare(scene, weights)
        sr = denoise(
            self.network,
            scene.region,
            crops,
            scene.upscaled,
            scene.coarse_sr,
            scene.uncertainty_map,
            self.sigmas,
            self.options.cfg_scale or 1.0,
            lambda _: None,
        )
        plain = replace(self.options, color_correction="none")
        return self.upscaler.compose(sr, scene.region.lr_image, scene.upscaled, scene.uncertainty_map, plain)

    def loss(self, scene: Scene, weights: Mapping[str, Tensor] | None) -> Tensor:
        # float64: what routing changes is smaller than the last digits of a float32 mean
        return (self.restore(scene, weights) - scene.hr_image).abs().double().mean()

    def measure(self, scene: Scene, mean_weights: Mapping[str, float]) -> PatchGains:
        """Weights and gains of every patch, with w_bar per modality in `mean_weights`."""
        routed = self.route(scene)
        static = {name: torch.full_like(routed[name], mean_weights[name]).requires_grad_() for name in routed}
        with torch.enable_grad():
            loss = self.loss(scene, static)
            gradients = torch.autograd.grad(loss, list(static.values()))
        with torch.no_grad():
            dynamic = self.loss(scene, routed)
        return PatchGains(
            weights=to_rows(list(routed.values())),
            gains=-to_rows(list(gradients)),
            static_loss=float(loss.detach()),
            dynamic_loss=float(dynamic),
        )


def require_fusion(upscaler: Upscaler) -> M3ESR:
    """The network with its router and experts. Raises EvaluationError for a profile that has none of its own."""
    network = getattr(upscaler, "network", None)
    if not isinstance(network, M3ESR):
        raise EvaluationError("this profile has no trained fusion to take apart; 'compact' has")
    return network


def to_rows(maps: list[Tensor]) -> NDArray[np.float64]:
    return torch.cat([values.flatten(1) for values in maps]).double().cpu().numpy()
