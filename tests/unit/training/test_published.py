"""Fusion training beside a frozen backbone, on tiny random checkpoints in the hub's layout."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.backbones.fusion_files import fusion_file
from models.backbones.memory import TileSizes
from models.checkpoint import read_tensors
from models.requests import UpscaleOptions
from tests.unit.models.backbones.test_quality import load, picture
from tests.unit.models.published_tiny import save_joint_fusion
from tests.unit.training.conftest import RECIPE, SIZE
from training.published import RECIPES
from training.published.__main__ import main
from training.published.stage import Draws, FusionLoss, flow_loss, mix

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["segmentation", "depth", "edge", "dino"]


def weights(run):
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def is_trained(name):
    return name.startswith("fusion.") or "_fused." in name


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_loss_of_a_fixed_batch_falls_in_both_readings(start, recipe):
    run = start(replace(RECIPES[recipe](), total_batch=2), batch_size=2)
    batch = run.cache.batch([(i, 0, run.captions[i]) for i in run.pairs.training[:2]])
    losses = FusionLoss(run.network, run.recipe, run.schedule)
    optimizer = torch.optim.Adam(run.trained.parameters(), lr=1e-2)
    seen = []
    for _ in range(40):
        loss = losses(batch, Draws(0, 0, 0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.96 * seen[0]  # noise and drops are the same each time: only training moves it


def test_only_the_fusion_and_the_fused_group_change(start):
    run = start()
    before = weights(run)
    run.train()
    after = weights(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if is_trained(name)}
    assert {name.replace("/", ".") for name in run.trained.state_dict()} == changed


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_trains_float32_parameters(start, checkpointing):
    run = start(precision="bf16", checkpointing=checkpointing)
    assert run.network.denoiser.proj_out.weight.dtype == torch.bfloat16
    assert {p.dtype for p in run.trained.parameters()} == {torch.float32}
    before = weights(run)
    run.train()
    after = weights(run)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(filter(is_trained, before))


def gradients(run):
    batch = run.cache.batch([(run.pairs.training[0], 0, "")])
    FusionLoss(run.network, run.recipe, run.schedule)(batch, Draws(0, 0, 0))["loss"].backward()
    return [p.grad for p in run.trained.parameters()]


def test_gradients_in_bfloat16_point_where_those_in_float32_do(start):
    exact, rounded = (torch.cat([g.flatten() for g in gradients(start(precision=p))]) for p in ("fp32", "bf16"))
    assert not torch.equal(exact, rounded)
    assert float(torch.nn.functional.cosine_similarity(exact, rounded, dim=0)) > 0.98


def test_checkpointing_changes_no_gradient(start):
    found, num_passes = [], []
    for checkpointing in (False, True):
        run, passes = start(checkpointing=checkpointing), []
        run.network.denoiser.transformer_blocks[0].register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        found.append(gradients(run))
        num_passes.append(len(passes))
    assert num_passes == [1, 2]  # what was not kept is computed again
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(start):
    whole = start(out="whole")
    whole.train()
    start(replace(RECIPE, num_steps=2), out="cut").train()
    again = start(out="cut")
    again.train()
    for name, value in whole.trained.state_dict().items():
        assert torch.equal(value, again.trained.state_dict()[name]), name
    files = [run.fusion_path.read_bytes() for run in (whole, again)]
    assert files[0] == files[1]


def test_two_processes_end_with_the_same_parameters(start, root, pairs, features, captions, tmp_path):
    alone = start(out="alone", batch_size=2)  # makes the features
    before = alone.trained.state_dict()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "tests.unit.training.published_rank", "--models-dir", root, "--pairs", pairs]
    command += ["--features", features, "--captions", captions, "--out", tmp_path / "two", "--device", "cpu"]
    command += ["--num-steps", "3", "--total-batch", "2", "--learning-rate", "2e-3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, before[name]) for name, value in first.items())
    assert "1 x 2 process(es) x 1" in done.stdout


def test_the_command_writes_a_file_that_the_profile_serves(root, pairs, features, captions, tmp_path, capsys):
    out, hub = tmp_path / "out", tmp_path / "hub"
    arguments = ["--models-dir", root, "--pairs", pairs, "--features", features, "--captions", captions, "--out", out]
    arguments += ["--num-steps", 2, "--total-batch", 2, "--device", "cpu", "--log-every", 1]
    assert main(list(map(str, arguments))) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == str(out / "fusion_r1.safetensors")
    assert "flow loss on 1 held-out pairs" in told and "step      2" in told
    shutil.copytree(root, hub)
    (hub / fusion_file("dit4sr_r1")).parent.mkdir(parents=True)
    shutil.copy(out / "fusion_r1.safetensors", hub / fusion_file("dit4sr_r1"))
    upscaler = load(hub)
    result = upscaler.upscale(picture(), UpscaleOptions(num_steps=1, modalities=dict.fromkeys(NAMES, 1.0)))
    assert result.fusion == "trained"
    assert all(result.maps[name].shape == (4, 6) and result.maps[name].min() > 0 for name in NAMES)


def test_the_weights_of_the_other_code_are_trained_too(start, root, tmp_path):
    run = start(replace(RECIPE, weights="dit4sr_q"), features=tmp_path / "features")
    before = weights(run)
    run.train()
    assert {name for name in before if not torch.equal(before[name], weights(run)[name])} == set(
        filter(is_trained, before)
    )
    hub = tmp_path / "hub"
    shutil.copytree(root, hub)
    (hub / fusion_file("dit4sr_q")).parent.mkdir(parents=True)
    shutil.copy(run.fusion_path, hub / fusion_file("dit4sr_q"))
    upscaler = load(hub, quality_weights="dit4sr_q")
    assert upscaler.upscale(picture(), UpscaleOptions(num_steps=1, modalities={"edge": 1.0})).fusion == "trained"


def test_what_is_saved_is_the_average(start):
    run = start()
    run.train()
    saved = read_tensors(run.fusion_path)["router.to_weights.weight"]
    state = torch.load(run.options.out / "state.pt", weights_only=True)
    assert torch.equal(saved, state["ema"]["fusion/router/to_weights/weight"])
    assert not torch.equal(saved, run.network.fusion.router.to_weights.weight)


def test_a_modality_that_is_left_out_is_neither_extracted_nor_trained(start, tmp_path):
    recipe = replace(RECIPE, modalities=("edge", "depth"), num_steps=1)
    run = start(recipe, features=tmp_path / "features")
    assert run.network.fusion.config.fusion.modalities == ("edge", "depth")
    run.train()
    assert not any("dino" in name for name in run.trained.state_dict())
    assert "dino" not in run.cache.read(run.cache.lr_path(run.pairs.training[0], 0))


def test_features_are_what_the_profile_sees(start, root, tmp_path):
    run, hub = start(features=tmp_path / "features"), tmp_path / "hub"  # in float32, as the profile runs here
    shutil.copytree(root, hub)
    save_joint_fusion(hub)
    upscaler = load(hub)
    upscaler.sampling = replace(upscaler.sampling, process_side=SIZE)
    network, seen = upscaler.fusion.network, {}
    prepare = network.prepare
    network.router.register_forward_hook(lambda _, inputs, __: seen.update(small=inputs[0], uncertainty=inputs[1]))
    network.prepare = lambda lr_latent, modalities, weights: (
        seen.update(modalities, lr_latent=lr_latent) or prepare(lr_latent, modalities, weights)
    )
    i = run.pairs.training[0]
    lr, hr = run.pairs.pair(i, 1)
    options = UpscaleOptions(num_steps=1, modalities=dict.fromkeys(NAMES, 1.0))
    upscaler.upscale(lr.permute(1, 2, 0).numpy(), options)
    kept = run.cache.read(run.cache.lr_path(i, 1))
    assert set(kept) == set(seen)
    for name, value in kept.items():
        assert torch.allclose(value, seen[name][0], atol=2e-3, rtol=2e-3), name
    text = run.cache.read(run.cache.text_path("a bridge"))
    expected, pooled = upscaler.text.encode(["a bridge"])
    assert torch.allclose(text["text_embeddings"], expected[0], atol=1e-2)
    assert torch.allclose(text["pooled"], pooled[0], atol=1e-2)
    clean = run.cache.read(run.cache.hr_path(i))["clean"]
    with torch.no_grad():
        assert torch.allclose(clean, upscaler.vae.encode(hr[None], TileSizes())[0], atol=2e-3, rtol=2e-3)


def test_captions_reach_the_batch_and_a_share_of_them_is_left_out(start):
    run = start(replace(RECIPE, text_dropout=0.5), batch_size=2)
    assert run.captions.count("a bridge") == 2
    drawn = [caption for number in range(100) for _, _, caption in run.sample(Draws(0, 0, number))]
    said = {caption for caption in run.captions if caption}
    assert said <= set(run.captions) and set(drawn) <= {*said, ""}
    assert len(set(drawn)) > 1 and drawn.count("") > 80
    assert run.sample(Draws(0, 0, 7)) == run.sample(Draws(0, 0, 7)) != run.sample(Draws(0, 1, 7))


def test_dropout_of_modalities_never_leaves_none():
    kept = Draws(0, 0, 0).kept(2000, 4, 0.9)
    assert kept.sum(1).min() == 1
    assert 0.05 < float((Draws(0, 0, 1).kept(2000, 4, 0.1) == 0).float().mean()) < 0.15


def test_a_dropped_modality_says_nothing(start):
    run = start()
    batch = run.cache.batch([(run.pairs.training[0], 0, "")])
    other = replace(batch, modalities=batch.modalities | {"depth": torch.randn_like(batch.modalities["depth"])})
    noisy, sigma = torch.randn_like(batch.clean), torch.tensor([0.6])
    with torch.no_grad():
        for name, is_same in (("depth", True), ("edge", False)):
            kept = torch.tensor([[float(other_name != name) for other_name in batch.modalities]])
            ours, theirs = (run.network(seen, noisy, sigma, kept)[0] for seen in (batch, other))
            assert torch.equal(ours, theirs) == is_same


def test_the_loss_is_the_error_of_the_clean_latent_that_a_velocity_points_to():
    torch.manual_seed(0)
    clean, noise, velocity = torch.randn(3, 2, 4, 4, 4).unbind()
    sigma = torch.tensor([0.3, 0.9])
    end = mix(clean, noise, sigma) - sigma[:, None, None, None] * velocity
    assert torch.allclose(flow_loss(velocity, clean, noise, sigma), (end - clean).square().mean((1, 2, 3)), atol=1e-5)
    assert float(flow_loss(noise - clean, clean, noise, sigma).abs().max()) == 0
    assert torch.equal(mix(clean, noise, torch.ones(2)), noise)


def test_sigmas_are_those_of_the_shifted_table(start):
    sigmas = Draws(0, 0, 0).sigmas(4000, start().schedule)
    assert sigmas.min() > 0 and sigmas.max() <= 1
    assert float(sigmas.median()) == pytest.approx(0.75, abs=0.02)  # 0.5 shifted by 3


def test_the_mean_weight_is_drawn_to_w_bar_over_batches_not_within_one(start):
    run = start()
    losses = FusionLoss(run.network, run.recipe, run.schedule)
    low = torch.full((4,), 0.2, requires_grad=True)
    (losses.expect(low) - 0.5).square().sum().backward()
    first = low.grad.clone()
    assert bool((first < 0).all()) and float(first.abs().max()) < 0.02  # one batch says little
    for _ in range(300):
        losses.expect(torch.full((4,), 0.2))
    low.grad = None
    (losses.expect(low) - 0.5).square().sum().backward()
    assert torch.allclose(low.grad, torch.full((4,), -0.6), atol=0.01)
