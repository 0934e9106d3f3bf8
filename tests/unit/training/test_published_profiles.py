"""Fusion training beside each frozen backbone: what is true of all of them."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbones.fusion_files import fusion_file
from models.requests import UpscaleOptions
from tests.unit.models.backbones.hubs import NAMES, PROFILES, load, picture
from tests.unit.training.conftest import TINY_RECIPES
from training.published import RECIPES, recipe_for
from training.published.__main__ import main
from training.published.stage import Draws, FusionLoss

ROOT = Path(__file__).resolve().parents[3]
FASTEST = {"quality": 1e-2, "fidelity": 1e-3}  # learning rates; the latter fusion has its full width


@pytest.fixture(params=PROFILES)
def profile(request):
    return request.param


@pytest.fixture
def begin(start, profile):
    def begin(recipe=TINY_RECIPES[profile], **changes):
        return start(recipe, **changes)

    return begin


def first_layer(run):
    """A layer of the frozen backbone that computes in the precision it was loaded in, and can be checkpointed."""
    if run.recipe.profile == "quality":
        return run.network.denoiser.transformer_blocks[0]
    return run.network.unet.down_blocks[0].resnets[0]


def weights(run):
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def is_trained(name):
    return (name.startswith("fusion.") and not name.endswith("pos_embed")) or "_fused." in name


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_loss_of_a_fixed_batch_falls_in_both_readings(begin, profile, name):
    run = begin(replace(recipe_for(profile, name), total_batch=2), batch_size=2)
    batch = run.cache.batch([(i, 0, run.captions[i]) for i in run.pairs.training[:2]])
    losses = FusionLoss(run.network, run.recipe, run.objective)
    optimizer = torch.optim.Adam(run.trained.parameters(), lr=FASTEST[profile])
    seen = []
    for _ in range(40):
        loss = losses(batch, Draws(0, 0, 0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.96 * seen[0]  # noise and drops are the same each time: only training moves it


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16"}, {"precision": "bf16", "checkpointing": True}], ids=["fp32", "bf16", "kept"]
)
def test_only_the_fusion_changes_and_it_is_float32(begin, changes):
    run = begin(**changes)
    dtype = torch.bfloat16 if changes else torch.float32
    assert next(first_layer(run).parameters()).dtype == dtype
    assert {p.dtype for p in run.trained.parameters()} == {torch.float32}
    before = weights(run)
    run.train()
    after = weights(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(filter(is_trained, before))
    assert {name.replace("/", ".") for name in run.trained.state_dict()} == changed


def gradients(run):
    batch = run.cache.batch([(run.pairs.training[0], 0, "")])
    FusionLoss(run.network, run.recipe, run.objective)(batch, Draws(0, 0, 0))["loss"].backward()
    return [p.grad for p in run.trained.parameters()]


def test_gradients_in_bfloat16_point_where_those_in_float32_do(begin):
    exact, rounded = (torch.cat([g.flatten() for g in gradients(begin(precision=p))]) for p in ("fp32", "bf16"))
    assert not torch.equal(exact, rounded)
    assert float(torch.nn.functional.cosine_similarity(exact, rounded, dim=0)) > 0.98


def test_checkpointing_changes_no_gradient(begin):
    found, num_passes = [], []
    for checkpointing in (False, True):
        run, passes = begin(checkpointing=checkpointing), []
        first_layer(run).register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        found.append(gradients(run))
        num_passes.append(len(passes))
    assert num_passes == [1, 2]  # what was not kept is computed again
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(begin, profile):
    whole = begin(out="whole")
    whole.train()
    begin(replace(TINY_RECIPES[profile], num_steps=2), out="cut").train()
    again = begin(out="cut")
    again.train()
    for name, value in whole.trained.state_dict().items():
        assert torch.equal(value, again.trained.state_dict()[name]), name
    files = [run.fusion_path.read_bytes() for run in (whole, again)]
    assert files[0] == files[1]


def test_two_processes_end_with_the_same_parameters(begin, profile, root, pairs, captions, tmp_path):
    alone = begin(out="alone", batch_size=2)  # makes the features
    before = alone.trained.state_dict()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "tests.unit.training.published_rank", "--profile", profile, "--models-dir", root]
    command += ["--pairs", pairs, "--features", alone.cache.folder, "--captions", captions, "--out", tmp_path / "two"]
    command += ["--device", "cpu", "--num-steps", "3", "--total-batch", "2", "--learning-rate", "2e-3"]
    command += ["--checkpointing"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, before[name]) for name, value in first.items())
    assert "1 x 2 process(es) x 1" in done.stdout


def test_the_command_writes_a_file_that_the_profile_serves(profile, root, pairs, features, captions, tmp_path, capsys):
    out, hub, weights = tmp_path / "out", tmp_path / "hub", TINY_RECIPES[profile].weights
    arguments = ["--profile", profile, "--models-dir", root, "--pairs", pairs, "--features", features / profile]
    arguments += ["--captions", captions, "--out", out, "--device", "cpu"]
    arguments += ["--num-steps", 2, "--total-batch", 2, "--log-every", 1]
    assert main(list(map(str, arguments))) == 0
    told, written = capsys.readouterr().out, out / Path(fusion_file(weights)).name
    assert told.splitlines()[-1] == str(written)
    assert "loss on 1 held-out pairs" in told and "step      2" in told
    shutil.copytree(root, hub)
    (hub / fusion_file(weights)).parent.mkdir(parents=True)
    shutil.copy(written, hub / fusion_file(weights))
    upscaler = load(hub, profile)
    options = UpscaleOptions(num_steps=1, modalities=dict.fromkeys(NAMES, 1.0))
    result = upscaler.upscale(picture(), options)
    assert result.fusion == "trained"
    assert all(result.maps[name].shape == (4, 6) and result.maps[name].min() > 0 for name in NAMES)
    upscaler.fusion = None
    assert not np.array_equal(upscaler.upscale(picture(), options).sr_image, result.sr_image)
