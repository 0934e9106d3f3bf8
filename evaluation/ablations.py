"""The rows of the paper's Table 3, masked at inference: a modality absent, router or temperatures set to constants."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from evaluation.data import Pair, read_image, to_float
from evaluation.gains import require_fusion
from evaluation.methods import Method
from models.configs import VISUAL_MODALITIES
from models.pipeline import Upscaler
from models.requests import ALL_MODALITIES, Intervention

# rows of which a network trained without the part could be shown beside the masked one
TRAINABLE = ("none", *(f"without {name}" for name in VISUAL_MODALITIES), "routing off", "temperature off")


def masked_rows(method: Method, mean_weights: dict[str, float]) -> dict[str, Method]:
    """By row name, the method with that part off. Text stays on in all of them, as in the paper's "None", DiT4SR.

    mean_weights: w_bar per modality, which "routing off" uses everywhere; a temperature of 1 is plain attention.
    """
    rows = {"none": modalities(method, ("text",))}
    for name in VISUAL_MODALITIES:
        rows[f"without {name}"] = modalities(method, tuple(other for other in ALL_MODALITIES if other != name))
    rows["all"] = method
    rows["routing off"] = intervene(method, Intervention(expert_weights=mean_weights))
    rows["temperature off"] = intervene(method, Intervention(temperature=1.0))
    return {
        name: replace(row, name=method.name if name == "all" else f"{method.name} {name}") for name, row in rows.items()
    }


def modalities(method: Method, names: tuple[str, ...]) -> Method:
    return replace(method, options=replace(method.options, modalities=dict.fromkeys(names, 1.0)))


def intervene(method: Method, intervention: Intervention) -> Method:
    return replace(method, options=replace(method.options, intervention=intervention))


@torch.inference_mode()
def measure_mean_weights(upscaler: Upscaler, pairs: Sequence[Pair]) -> dict[str, float]:
    """w_bar of the theorem: the router's mean weight per modality over these images."""
    network, total = require_fusion(upscaler), dict.fromkeys(VISUAL_MODALITIES, 0.0)
    for pair in pairs:
        lr = torch.from_numpy(to_float(read_image(pair.lr))).permute(2, 0, 1)[None].to(upscaler.device)
        lr = lr[..., : lr.shape[-2] // 4 * 4, : lr.shape[-1] // 4 * 4]
        _, coarse_sr, uncertainty_map = network.estimate(lr)
        modalities, tokens = network.render(lr, coarse_sr, VISUAL_MODALITIES)
        routed = network.route(lr, uncertainty_map, modalities, tokens)
        for name in total:
            total[name] += float(routed[name].mean())
    return {name: round(value / len(pairs), 6) for name, value in total.items()}
