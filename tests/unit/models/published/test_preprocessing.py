"""Preprocessing equals the published processors' own output where those run without torchvision."""

import json

import numpy as np
import pytest
import torch

from models.modalities.published.captions import BLIP_384, CLIP_336
from models.modalities.published.depth import PREPROCESSING as DEPTH
from models.modalities.published.preprocessing import Preprocessing, resize_bytes
from models.modalities.published.segmentation import PREPROCESSING as SEGMENTATION
from tests.unit.models.published.tiny import image

SIZES = [(64, 96), (100, 61), (512, 512), (384, 384)]


def official(kind):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    if kind == "segmentation":
        return Mask2FormerImageProcessorPil(size={"height": 384, "width": 384}, size_divisor=32, **imagenet)
    if kind == "depth":
        size = {"height": 518, "width": 518}
        return DPTImageProcessorPil(size=size, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3, **imagenet)
    if kind == "llava":
        return CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return BlipImageProcessorPil()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "ours"), [("segmentation", SEGMENTATION), ("depth", DEPTH), ("llava", CLIP_336), ("blip", BLIP_384)]
)
def test_equals_the_official_processor(kind, ours, size):
    seen = image(*size)
    levels = (seen[0] * 255).round().byte().permute(1, 2, 0).numpy()
    expected = official(kind)(images=[levels], return_tensors="np")["pixel_values"]
    found = ours(seen).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("size", [(64, 96), (100, 61), (40, 200), (200, 41), (80, 80)])
def test_the_other_way_mask2former_gives_sizes(size, tmp_path):
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    told = {"size": {"shortest_edge": 80, "longest_edge": 210}, "size_divisor": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    seen = image(*size)
    levels = (seen[0] * 255).round().byte().permute(1, 2, 0).numpy()
    expected = Mask2FormerImageProcessorPil(**told)(images=[levels], return_tensors="np")["pixel_values"]
    found = Preprocessing.read(tmp_path, SEGMENTATION)(seen).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3


def test_settings_are_read_from_the_folder(tmp_path):
    told = {"size": {"shortest_edge": 224}, "crop_size": {"height": 200, "width": 200}, "image_std": [1, 1, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**told, "resample": 2}))
    read = Preprocessing.read(tmp_path, CLIP_336)
    assert (read.shortest_edge, read.crop, read.std, read.mode) == (224, 200, (1, 1, 1), "bilinear")
    assert read.mean == CLIP_336.mean
    assert Preprocessing.read(tmp_path / "none", CLIP_336) == CLIP_336


def test_the_batch_is_kept_and_bytes_are_rounded():
    seen = torch.cat([image(seed=1), image(seed=2)])
    assert torch.equal(SEGMENTATION(seen)[1], SEGMENTATION(seen[1:])[0])
    levels = resize_bytes(seen, (40, 50), "bicubic") * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
