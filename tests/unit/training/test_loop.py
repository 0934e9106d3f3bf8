"""The training loop: it learns, it averages, it resumes."""

import pytest
import torch
from torch import nn

from training.loop import Ema, LoopConfig, Trainer


def config(**changes: object) -> LoopConfig:
    values = {"num_steps": 60, "minutes": 1.0, "learning_rate": 0.05, "warmup_steps": 5, "log_every": 20}
    return LoopConfig(**(values | changes))


def line_fitting(network: nn.Module) -> dict[str, torch.Tensor]:
    x = torch.linspace(-1, 1, 32)[:, None]
    return {"loss": (network(x) - 3 * x).square().mean()}


def test_the_loss_falls_and_the_log_can_be_read(tmp_path, capsys):
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    before = float(line_fitting(network)["loss"].detach())
    trained = Trainer(network, config(num_steps=200, ema_decay=0.9), tmp_path, batch_size=32).run(line_fitting)
    assert float(line_fitting(trained)["loss"].detach()) < 0.05 * before
    line = capsys.readouterr().out.splitlines()[0]
    for part in ("step", "loss", "lr", "samples/s", "min left"):
        assert part in line


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path):
    torch.manual_seed(0)
    first = Trainer(nn.Linear(1, 1), config(num_steps=20), tmp_path, batch_size=32)
    first.run(line_fitting)
    second = Trainer(nn.Linear(1, 1), config(num_steps=40), tmp_path, batch_size=32)
    assert second.step_index == 20
    assert torch.equal(second.network.weight, first.network.weight)
    assert torch.equal(second.ema.network.weight, first.ema.network.weight)
    second.run(line_fitting)
    assert second.step_index == 40


def test_the_first_line_after_a_resume_tells_the_mean_of_the_steps_it_has(tmp_path, capsys):
    def constant(network: nn.Module) -> dict[str, torch.Tensor]:
        return {"loss": 0 * network.weight.sum() + 2.0}

    Trainer(nn.Linear(1, 1), config(num_steps=15), tmp_path, batch_size=1).run(constant)
    Trainer(nn.Linear(1, 1), config(num_steps=20), tmp_path, batch_size=1).run(constant)
    assert "step     20  loss 2.0000" in capsys.readouterr().out


def test_batches_that_are_accumulated_make_one_step_of_their_mean(tmp_path):
    found = []
    for parts, name in (([slice(0, 32)], "whole"), ([slice(0, 16), slice(16, 32)], "halves")):
        torch.manual_seed(0)
        queue = list(parts)

        def step(network: nn.Module, queue: list[slice] = queue) -> dict[str, torch.Tensor]:
            x = torch.linspace(-1, 1, 32)[queue.pop(0), None]
            return {"loss": (network(x) - 3 * x).square().mean()}

        trainer = Trainer(nn.Linear(1, 1), config(num_accumulated=len(parts)), tmp_path / name, batch_size=32)
        found.append((trainer.learn(step)["loss"], trainer.network.weight.grad.clone()))
        assert trainer.step_index == 1 and queue == []
    assert found[0][0] == pytest.approx(found[1][0]) and torch.allclose(found[0][1], found[1][1])


class Companion:
    """Something a stage keeps beside its network."""

    def __init__(self, steps: int):
        self.steps = steps

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def test_what_a_stage_keeps_beside_its_network_is_resumed_too(tmp_path):
    Trainer(nn.Linear(1, 1), config(num_steps=5), tmp_path, 1, companion=Companion(7)).run(line_fitting)
    fresh = Companion(0)
    Trainer(nn.Linear(1, 1), config(num_steps=9), tmp_path, 1, companion=fresh)
    assert fresh.steps == 7


def test_the_learning_rate_warms_up_and_falls(tmp_path):
    trainer = Trainer(nn.Linear(1, 1), config(), tmp_path, batch_size=1)
    rates = []
    for trainer.step_index in range(61):
        rates.append(trainer.learning_rate())
    assert rates[0] < rates[4] and max(rates) <= 0.05
    assert rates[60] == pytest.approx(0.05 * 0.02, rel=1e-3)


def test_the_average_lags_behind_and_has_no_gradient():
    network = nn.Linear(1, 1)
    ema = Ema(network, decay=0.9)
    start = ema.network.weight.clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    ema.update(network)
    assert start < ema.network.weight <= network.weight
    assert not any(p.requires_grad for p in ema.network.parameters())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def broken(network: nn.Module) -> dict[str, torch.Tensor]:
        return {"loss": network.weight.sum() * float("nan")}

    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        Trainer(nn.Linear(1, 1), config(), tmp_path, batch_size=1).run(broken)


def test_parameters_learn_at_their_share_of_the_learning_rate(tmp_path):
    torch.manual_seed(0)
    network = nn.ModuleDict({"fast": nn.Linear(1, 1), "slow": nn.Linear(1, 1), "still": nn.Linear(1, 1)})
    network["still"].requires_grad_(False)
    before = {name: float(part.weight.detach()) for name, part in network.items()}

    def step(network: nn.Module) -> dict[str, torch.Tensor]:
        return {"loss": sum(part.weight.sum() for part in network.values())}

    Trainer(network, config(num_steps=10), tmp_path, batch_size=1, rates={"slow.": 0.25}).run(step)
    moved = {name: before[name] - float(part.weight.detach()) for name, part in network.items()}
    assert moved["slow"] == pytest.approx(0.25 * moved["fast"], rel=1e-3)  # Adam's steps are as long as the rate
    assert moved["still"] == 0 < moved["fast"]
