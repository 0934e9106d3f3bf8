"""The loop that every training stage shares: schedule, EMA, checkpoints, resume and a log that a person can read."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast. A run ends at `num_steps` or after `minutes`, whichever comes first."""

    num_steps: int
    minutes: float
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 100
    final_fraction: float = 0.02  # learning rate at the end, as a share of the peak (cosine between)
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    num_accumulated: int = 1  # batches whose gradients are averaged into one step
    log_every: int = 50
    validate_minutes: float = 5.0


class Stateful(Protocol):
    """What a stage keeps beside the network, such as an adversary; saved and resumed with it."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> object: ...


class Ema:
    """Exponential moving average of the trainable weights; the average is what is validated and shipped."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.num_updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.num_updates += 1
        # the short average at the start lets a run that has just begun be validated on something it learned
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averaged: tuple[list[Tensor], list[Tensor]] = [], []
        for kept, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                averaged[0].append(kept)
                averaged[1].append(new)
            else:
                kept.copy_(new)
        torch._foreach_lerp_(*averaged, 1 - decay)  # one launch instead of one per tensor


def group_parameters(network: nn.Module, rates: Mapping[str, float]) -> dict[float, list[nn.Parameter]]:
    """Trainable parameters by their share of the learning rate; 1 where no prefix of `rates` fits."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), 1.0)
            groups.setdefault(rate, []).append(parameter)
    return groups


class Trainer:
    """Runs `step(network) -> losses` until the schedule ends; the entry "loss" is what is minimised.

    Of several processes that train together, only the one with `is_main` writes and prints. They must end together:
    give `minutes` as infinite. `rates`: by the start of a parameter's name, its share of the learning rate.
    """

    def __init__(
        self,
        network: nn.Module,
        config: LoopConfig,
        folder: Path,
        batch_size: int,
        companion: Stateful | None = None,
        *,
        rates: Mapping[str, float] | None = None,
        is_main: bool = True,
    ):
        self.network, self.config, self.folder, self.batch_size = network, config, folder, batch_size
        self.companion, self.is_main = companion, is_main
        folder.mkdir(parents=True, exist_ok=True)
        groups = group_parameters(network, rates or {})
        self.rates = list(groups)
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters} for parameters in groups.values()],
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.ema = Ema(network, config.ema_decay)
        self.step_index, self.elapsed = 0, 0.0
        self.state_path = folder / "state.pt"
        if self.state_path.exists():
            self.resume()

    def resume(self) -> None:
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)  # saved on another device, perhaps
        self.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.ema.num_updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.companion is not None:
            self.companion.load_state_dict(state["companion"])
        self.step_index, self.elapsed = state["step"], state["elapsed"]
        if self.is_main:
            print(f"resumed at step {self.step_index}, {self.elapsed / 60:.1f} minutes in", flush=True)

    def save(self) -> None:
        if not self.is_main:
            return
        temporary = self.state_path.with_suffix(".tmp")
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "ema_updates": self.ema.num_updates,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_index,
            "elapsed": self.elapsed,
        }
        if self.companion is not None:
            state["companion"] = self.companion.state_dict()
        torch.save(state, temporary)
        temporary.replace(self.state_path)

    @property
    def progress(self) -> float:
        return min(1.0, max(self.step_index / self.config.num_steps, self.elapsed / (60 * self.config.minutes)))

    def learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step_index + 1) / config.warmup_steps)
        cosine = config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return config.learning_rate * warm * cosine

    def run(
        self, step: Callable[[nn.Module], dict[str, Tensor]], validate: Callable[[nn.Module], str] | None = None
    ) -> nn.Module:
        """Trains to the end and returns the averaged network."""
        since_log, last_validation, sums, logged = (
            time.monotonic(),
            self.elapsed,
            dict[str, Tensor | float](),
            self.step_index,
        )
        started = time.monotonic() - self.elapsed
        while self.progress < 1.0:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.learning_rate()
            for name, value in self.learn(step).items():
                sums[name] = sums.get(name, 0.0) + value
            self.elapsed = time.monotonic() - started
            if self.step_index % self.config.log_every == 0:
                num_steps = self.step_index - logged  # fewer in the first line after a resume
                means = self.read({name: total / num_steps for name, total in sums.items()})
                self.log(means, num_steps, time.monotonic() - since_log)
                since_log, sums, logged = time.monotonic(), {}, self.step_index
            if self.elapsed - last_validation > 60 * self.config.validate_minutes:
                self.read(sums)  # nothing broken is saved
                self.save()
                if validate is not None:
                    print(f"  validation at step {self.step_index}: {validate(self.ema.network)}", flush=True)
                last_validation = self.elapsed = time.monotonic() - started
        self.read(sums)
        self.save()
        if validate is not None:
            print(f"  validation at the end: {validate(self.ema.network)}", flush=True)
        return self.ema.network

    def read(self, means: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Losses as numbers, which waits for the device. Raises FloatingPointError when the loss is not finite."""
        numbers = {name: float(value) for name, value in means.items()}
        if not math.isfinite(numbers.get("loss", 0.0)):
            raise FloatingPointError(f"loss is {numbers['loss']} by step {self.step_index}: lower the learning rate")
        return numbers

    def learn(self, step: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
        """One step of the optimiser; the losses, averaged over its batches, still on their device."""
        means, share = dict[str, Tensor](), 1 / self.config.num_accumulated
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.config.num_accumulated):
            losses = step(self.network)
            (losses["loss"] * share).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value.detach() * share
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.ema.update(self.network)
        self.step_index += 1
        return means

    def log(self, means: dict[str, float], num_steps: int, seconds: float) -> None:
        if not self.is_main:
            return
        rate = num_steps * self.batch_size / seconds
        left = self.elapsed / 60 * (1 - self.progress) / max(self.progress, 1e-6)
        losses = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        print(
            f"step {self.step_index:6d}  {losses}  lr {self.learning_rate():.1e}  "
            f"{rate:.1f} samples/s  {left:.0f} min left",
            flush=True,
        )
