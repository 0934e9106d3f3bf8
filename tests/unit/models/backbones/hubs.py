"""Tiny models folders of both public backbones, and the loaded profiles that the tests of this folder ask."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.backbones.fidelity import FidelityUpscaler
from models.backbones.options import BackboneOptions
from models.backbones.published import PublishedUpscaler
from models.backbones.quality import QualityUpscaler
from models.requests import UpscaleOptions
from models.routing.realesrgan import SRVGGNetCompact, SRVGGNetCompactConfig
from tests.unit.models.published import tiny
from tests.unit.models.published_tiny import save_denoiser, save_joint_fusion, save_sd35
from tests.unit.models.seesr_tiny import TAGGER, save_fusion, save_sd21, save_seesr, save_tagger, save_vqgan

PROFILES = ("quality", "fidelity")
NAMES = ["segmentation", "depth", "edge", "dino"]
ONE_STEP = UpscaleOptions(num_steps=1)
SMALL_SIDE = 64  # the rule is the published one, pictures of 512 px are not for tests


def save_backbone(root: Path, profile: str) -> None:
    """All that a profile loads without our fusion; no coarse network."""
    if profile == "quality":
        save_denoiser(root)
        save_sd35(root)
    else:
        save_seesr(root)
        save_sd21(root)
        save_tagger(root, threshold=0.0)


def save_coarse(root: Path) -> None:
    torch.manual_seed(0)
    folder = root / "xinntao" / "Real-ESRGAN"
    folder.mkdir(parents=True)
    network = SRVGGNetCompact(SRVGGNetCompactConfig(num_feat=4, num_conv=1))
    torch.save({"params": network.state_dict()}, folder / "realesr-general-x4v3.pth")


def save_guides(root: Path) -> None:
    """What a fusion reads: coarse network, extractors, VQGAN."""
    save_coarse(root)
    tiny.extractors(root)
    save_vqgan(root)


def save_fused(root: Path, profile: str) -> None:
    """A profile with random weights of our fusion, and all that they need."""
    save_backbone(root, profile)
    save_guides(root)
    (save_joint_fusion if profile == "quality" else save_fusion)(root)


def load(root: Path, profile: str, **options) -> PublishedUpscaler:
    chosen = BackboneOptions(models_dir=root, **options)
    if profile == "quality":
        upscaler = QualityUpscaler.load(root, "cpu", chosen)
    else:
        upscaler = FidelityUpscaler.load(root, "cpu", chosen, tagger=TAGGER)
    upscaler.sampling = replace(upscaler.sampling, process_side=SMALL_SIDE)
    return upscaler


def copy_without(root: Path, target: Path, gone: str) -> Path:
    """A copy of a models folder that lacks one file or folder."""
    shutil.copytree(root, target)
    path = target / gone
    path.unlink() if path.is_file() else shutil.rmtree(path)
    return target


def picture(height=18, width=25, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)
