"""Fusion training on tiny random checkpoints in the hub's layout: what the frozen networks saw, draws and losses."""

import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from models.backbones.fusion_files import fusion_file
from models.backbones.memory import TileSizes
from models.checkpoint import read_tensors
from models.denoising.seesr.guided import Condition, step_epsilon
from models.requests import UpscaleOptions
from tests.unit.models.backbones.hubs import NAMES, load, picture
from tests.unit.models.published_tiny import save_joint_fusion
from tests.unit.models.seesr_tiny import SCHEDULER, save_fusion
from tests.unit.training.conftest import RECIPE, SIZE, TINY_RECIPES
from training.published.objectives import FlowMatching, NoisePrediction
from training.published.stage import Draws, FusionLoss


def weights(run):
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def is_trained(name):
    return name.startswith("fusion.") or "_fused." in name


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
    upscaler = load(hub, "quality", quality_weights="dit4sr_q")
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
    upscaler = load(hub, "quality")
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


def test_features_beside_seesr_are_what_the_profile_tells_its_networks(start, root, tmp_path):
    run, hub = start(TINY_RECIPES["fidelity"], features=tmp_path / "features"), tmp_path / "hub"
    shutil.copytree(root, hub)
    save_fusion(hub)
    upscaler, told = load(hub, "fidelity"), []
    upscaler.sampling = replace(upscaler.sampling, process_side=SIZE)
    upscaler.seesr.controlnet.register_forward_pre_hook(lambda _, given: told.append(given))
    i = run.pairs.training[0]
    lr = run.pairs.pair(i, 1)[0].permute(1, 2, 0).numpy()
    upscaler.upscale(lr, UpscaleOptions(num_steps=1, modalities={"edge": 1.0}))
    _, _, _, work, tokens, scale = told[0]
    kept = run.cache.read(run.cache.lr_path(i, 1))
    assert torch.allclose(kept["work"], work[0], atol=1e-3)
    num_tokens = len(kept["image_tokens"])
    assert num_tokens == 65 and tokens.shape[1] == 65 + 16 and scale == 1
    assert torch.allclose(kept["image_tokens"], tokens[0, :num_tokens], atol=2e-3, rtol=2e-3)
    text = run.cache.read(run.cache.text_path("a bridge"))["text_embeddings"]
    assert torch.allclose(text, upscaler.text.encode(["a bridge"])[0], atol=1e-2)


def test_the_networks_answer_to_a_batch_as_a_step_of_the_profile_does(start):
    run = start(TINY_RECIPES["fidelity"])
    batch = run.cache.batch([(run.pairs.training[0], 0, "a bridge")])
    noisy, told = torch.randn_like(batch.clean), batch.conditions
    condition = Condition(told["work"], told["text_embeddings"], told["image_tokens"])
    with torch.no_grad():
        alone = run.network.predict(batch, noisy, torch.tensor([321.0]), None)
        step = step_epsilon(run.network.networks, noisy, condition, 321, tile=96, overlap=4)
    assert torch.allclose(alone, step, atol=1e-6)


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
    noisy, timestep = torch.randn_like(batch.clean), torch.tensor([600.0])
    with torch.no_grad():
        for name, is_same in (("depth", True), ("edge", False)):
            kept = torch.tensor([[float(other_name != name) for other_name in batch.modalities]])
            ours, theirs = (run.network(seen, noisy, timestep, kept)[0] for seen in (batch, other))
            assert torch.equal(ours, theirs) == is_same


def test_the_loss_is_the_error_of_the_clean_latent_that_a_velocity_points_to():
    torch.manual_seed(0)
    clean, noise, velocity = torch.randn(3, 2, 4, 4, 4).unbind()
    sigma, flow = torch.tensor([0.3, 0.9]), FlowMatching()
    end = flow.mix(clean, noise, 1000 * sigma) - sigma[:, None, None, None] * velocity
    expected = (end - clean).square().mean((1, 2, 3))
    assert torch.allclose(flow.loss(velocity, clean, noise, 1000 * sigma), expected, atol=1e-5)
    assert float(flow.loss(noise - clean, clean, noise, 1000 * sigma).abs().max()) == 0
    assert torch.equal(flow.mix(clean, noise, torch.full((2,), 1000.0)), noise)


def test_sigmas_are_those_of_the_shifted_table(start):
    sigmas = start().objective.draw(4000, torch.Generator().manual_seed(0)) / 1000
    assert sigmas.min() > 0 and sigmas.max() <= 1
    assert float(sigmas.median()) == pytest.approx(0.75, abs=0.02)  # 0.5 shifted by 3


def test_noise_prediction_is_that_of_stable_diffusion_2():
    torch.manual_seed(0)
    objective, scheduler = NoisePrediction(), DDPMScheduler.from_config(SCHEDULER)
    clean, noise = torch.randn(2, 3, 4, 4, 4).unbind()
    timestep = torch.tensor([0.0, 500.0, 999.0])
    expected = scheduler.add_noise(clean, noise, timestep.long())
    assert torch.allclose(objective.mix(clean, noise, timestep), expected, atol=1e-6)
    assert float(objective.loss(noise, clean, noise, timestep).max()) == 0
    assert torch.allclose(objective.loss(noise + 2, clean, noise, timestep), torch.full((3,), 4.0))
    drawn = objective.draw(4000, torch.Generator().manual_seed(0))
    assert (drawn.min(), drawn.max()) >= (0, 990) and drawn.max() < 1000 and torch.equal(drawn, drawn.round())
    assert float(drawn.mean()) == pytest.approx(499.5, abs=15)


def test_the_mean_weight_is_drawn_to_w_bar_over_batches_not_within_one(start):
    run = start()
    losses = FusionLoss(run.network, run.recipe, run.objective)
    low = torch.full((4,), 0.2, requires_grad=True)
    (losses.expect(low) - 0.5).square().sum().backward()
    first = low.grad.clone()
    assert bool((first < 0).all()) and float(first.abs().max()) < 0.02  # one batch says little
    for _ in range(300):
        losses.expect(torch.full((4,), 0.2))
    low.grad = None
    (losses.expect(low) - 0.5).square().sum().backward()
    assert torch.allclose(low.grad, torch.full((4,), -0.6), atol=0.01)
