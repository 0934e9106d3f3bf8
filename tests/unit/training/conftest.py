"""What fusion training is tested on: tiny random checkpoints in the hub's layout, and pairs of four photographs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.unit.models.backbones.hubs import PROFILES, save_backbone, save_guides
from tests.unit.models.published_tiny import save_denoiser
from tests.unit.models.seesr_tiny import TAGGER
from training.pairs import write_pairs
from training.published import recipe_for
from training.published.fidelity import FidelityBackbone
from training.published.run import BACKBONES, FusionRun, RunOptions, start_accelerator

SIZE = 64
TINY = {"total_batch": 2, "num_steps": 4, "learning_rate": 2e-3, "warmup_steps": 1}
TINY_RECIPES = {profile: replace(recipe_for(profile), **TINY) for profile in PROFILES}
RECIPE = TINY_RECIPES["quality"]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for profile in PROFILES:
        save_backbone(root, profile)
    save_denoiser(root, "dit4sr_q", seed=1)
    save_guides(root)
    return root


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    photographs, folder = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(photographs / f"p{i}.png")
    write_pairs(photographs, folder, num_draws=2, seed=5, num_held_out=1, recipe="clean", size=SIZE)
    return folder


@pytest.fixture(scope="session")
def features(root, pairs, tmp_path_factory):
    """A folder of each profile, made once, by the first run."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def captions(pairs, tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "captions.json"
    path.write_text(json.dumps({"p0.png": "a red boat", "p1.png": "a bridge", "p3.png": " a   bridge "}))
    return path


@pytest.fixture(autouse=True)
def tiny_ram(monkeypatch):
    monkeypatch.setitem(BACKBONES, "fidelity", FidelityBackbone(TAGGER))


@pytest.fixture
def start(root, pairs, features, captions, tmp_path):
    def start(recipe=RECIPE, out="out", **changes):
        values = {"models_dir": root, "pairs": pairs, "out": tmp_path / out, "features": features / recipe.profile}
        options = RunOptions(**(values | {"captions": captions, "device": "cpu", "log_every": 1000} | changes))
        return FusionRun(options, recipe, start_accelerator("cpu"))

    return start
