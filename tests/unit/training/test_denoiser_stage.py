"""Stage 3b with a detail network: what is judged is what it draws, and what it is told learns from that."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.configs import VISUAL_MODALITIES
from models.network import GUIDES
from models.routing.coarse import CoarseConfig
from tests.unit.models.tiny import tiny_upscaler
from tests.unit.training.test_guided import batch
from training.denoiser import ONLY, freeze, main, stage_config
from training.guided_stage import PARTS, GuidedConfig, GuidedStage, inner
from training.image_losses import ImageLosses, ImageLossWeights

DETAIL = CoarseConfig(widths=(8, 10, 12), num_blocks=(1, 1, 1), num_guides=GUIDES, token_width=16)
NEVER = replace(GuidedConfig(), modality_dropout=0.0, guidance_dropout=0.0, velocity_weight=0.0, unbiased_weight=0.0)


def stage(without: str | None = None, config: GuidedConfig = NEVER) -> GuidedStage:
    upscaler = tiny_upscaler(detail=DETAIL)
    judge = ImageLosses(ImageLossWeights(), None, seed=0)
    return GuidedStage(
        upscaler.network, upscaler.tokenizer, replace(config, without=without or config.without), judge, seed=0
    )


def test_the_picture_that_is_drawn_is_judged(monkeypatch):
    given, ours = batch(), stage()
    monkeypatch.setattr(ours.network, "draw", lambda *_, **__: inner(given.hr_image, 16))
    losses = ours.losses(given)
    assert float(losses["pixel"]) < 2e-3 < float(losses["coarse"])


def test_transformer_and_experts_learn_through_what_the_detail_network_is_told():
    """The velocity itself is not asked for here: the tokens are the only way."""
    ours = stage()
    network = ours.network.requires_grad_(True)
    nn.init.zeros_(network.detail.look.weight)  # the draft is not looked at
    ours.losses(batch())["loss"].backward()
    for part in (network.detail.listen, network.denoiser.transformer_blocks[0].ff, network.fusion.experts["depth"]):
        assert max(float(p.grad.abs().max()) for p in part.parameters() if p.grad is not None) > 0
    assert network.denoiser.proj_out.weight.grad is None or not network.denoiser.proj_out.weight.grad.any()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_trained_without_is_never_used(part, monkeypatch):
    """Table 3 of the paper retrains without each part."""
    ours, prepared = stage(part), []
    prepare = ours.network.prepare
    monkeypatch.setattr(ours.network, "prepare", lambda *a, **k: prepared.append((a, k)) or prepare(*a, **k))
    ours.losses(batch())
    (_, modalities, weights, _), options = prepared[0]
    left = {name for name in VISUAL_MODALITIES if part not in (name, "none")}
    assert set(modalities) == set(weights) == left
    is_constant = all(float(w.min()) == float(w.max()) == NEVER.mean_weight for w in weights.values())
    assert is_constant == (part in ("routing", "none"))
    assert options["temperature"] == (1.0 if part == "temperature" else None)


def test_the_coarse_network_learns_from_its_own_losses_alone():
    """Beside the rest, as `--train-coarse` asks: no picture pulls at what uncertainty is measured with."""
    given, ours = batch(), stage()
    ours.coarse_judge = ImageLosses(ImageLossWeights(edge=0.1), None, seed=0)
    coarse = ours.network.requires_grad_(True).coarse
    losses = ours.losses(given)
    losses["loss"].backward()
    together = [parameter.grad.clone() for parameter in coarse.parameters()]
    assert "coarse edge" in losses and max(float(gradient.abs().max()) for gradient in together) > 0
    coarse.zero_grad()
    ours.coarse_losses(ours.coarse_image(given), ours.see(given))["loss"].backward()
    for gradient, parameter in zip(together, coarse.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)


def test_a_frozen_coarse_network_is_left_alone():
    ours = stage()
    ours.network.requires_grad_(True)
    ours.losses(batch())["loss"].backward()
    assert all(parameter.grad is None for parameter in ours.network.coarse.parameters())


@pytest.mark.parametrize("only", ONLY)
def test_what_is_not_asked_for_is_frozen(only):
    """Guidance alone may learn how the detail network listens, and nothing else of it."""
    network = stage().network.requires_grad_(True)
    freeze(network, Namespace(only=only, train_coarse=False, freeze_router=False))
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    listening = {"detail.listen.weight", "detail.listen.bias"}
    detail = {name for name in learning if name.startswith("detail.")}
    others = {name.split(".")[0] for name in learning - detail}
    if only == "guidance":
        assert (detail, others) == (listening, {"fusion", "text_encoder", "denoiser"})
    elif only == "experts":
        assert (detail, others) == (set(), {"fusion", "router"})
    else:
        assert listening < detail and not others


def image_and_unbiased(losses: dict[str, torch.Tensor]) -> float:
    """The loss without the velocity's share, which says nothing about the picture."""
    return float((losses["pixel"] + 0.25 * losses["unbiased"]).detach())


def test_experts_alone_have_something_to_learn_from_at_every_step():
    """Every other part is frozen: a step without a modality would have no gradient at all, and end the run."""
    args = Namespace(only="experts", train_coarse=False, freeze_router=False, without="dino", unbiased_weight=0.25)
    ours = stage(config=replace(stage_config(args), modality_dropout=1.0))
    freeze(ours.network.requires_grad_(True), args)
    losses = ours.losses(batch())
    losses["loss"].backward()
    experts = ours.network.fusion.experts
    assert experts["depth"].to_output.weight.grad.abs().max() > 0
    assert experts["dino"].to_output.weight.grad is None
    assert float(losses["loss"].detach()) == pytest.approx(image_and_unbiased(losses), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [("--only experts --without none", "nothing to train"), ("--only detail --train-coarse", "freezes the coarse")],
)
def test_a_run_that_contradicts_itself_is_refused(options, reason, monkeypatch, capsys):
    required = "--photographs p --coarse c --perception p --names n --out o"
    monkeypatch.setattr("sys.argv", ["training.denoiser", *f"{required} {options}".split()])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2 and reason in capsys.readouterr().err
