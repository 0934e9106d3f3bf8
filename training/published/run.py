"""A run of fusion training: features first, then steps over them, in one process or in several."""

import json
import math
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.backbones.fusion_files import fusion_file
from models.backbones.published_files import silence_libraries
from training.loop import LoopConfig, Trainer
from training.pairs import PairDataset
from training.published.backbone import Backbone, FusedNetwork
from training.published.cache import FeatureCache, replace_text
from training.published.features import (
    NULL_CAPTION,
    NUM_HELD_OUT,
    Share,
    open_pairs,
    origin_of,
    read_captions,
    write_images,
    write_texts,
)
from training.published.fidelity import FidelityBackbone
from training.published.quality import QualityBackbone
from training.published.recipe import FusionRecipe
from training.published.stage import Draws, FusionLoss, TrainedParameters, choose_training_dtype, judge

if TYPE_CHECKING:
    from accelerate import Accelerator

BACKBONES: dict[str, Backbone] = {"quality": QualityBackbone(), "fidelity": FidelityBackbone()}
JUDGED_TIMESTEPS = (900.0, 700.0, 500.0, 300.0)
FEATURES_HOURS = 24  # how long a process waits for the features of the others


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a person decides for one run; the recipe says what is learned."""

    models_dir: Path
    pairs: Path
    out: Path
    features: Path | None = None  # default: `out`/features
    captions: Path | None = None
    batch_size: int = 1  # of one pass of one process
    precision: str = "auto"
    checkpointing: bool = False
    device: str = "auto"
    seed: int = 0
    log_every: int = 50
    save_minutes: float = 30.0


def start_accelerator(device: str) -> "Accelerator":
    """The processes that `accelerate launch` or torchrun started, or this one alone.

    Raises ValueError when a GPU is asked for and there is none.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown; use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA GPU here; use --device cpu, or auto")
    kwargs = [
        DistributedDataParallelKwargs(broadcast_buffers=False),
        InitProcessGroupKwargs(timeout=timedelta(hours=FEATURES_HOURS)),
    ]
    # said outright, or each of several processes without a GPU would think itself alone
    cpu = device == "cpu" or not torch.cuda.is_available()
    # precision is the stage's affair: only the denoiser runs under autocast
    return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=kwargs)


def accumulated(recipe: FusionRecipe, batch_size: int, num_processes: int) -> int:
    """Batches per step that make the recipe's total. Raises ValueError when they cannot."""
    if batch_size < 1 or recipe.total_batch % (batch_size * num_processes):
        raise ValueError(
            f"{num_processes} process(es) with --batch-size {batch_size} cannot make a total batch of "
            f"{recipe.total_batch}; choose sizes that divide it, or another --total-batch"
        )
    return recipe.total_batch // (batch_size * num_processes)


class FusionRun:
    """One process of a run, ready to train.

    Raises ValueError or MissingWeightsError, with what to do, before anything large is loaded.
    """

    def __init__(self, options: RunOptions, recipe: FusionRecipe, accelerator: "Accelerator"):
        self.options, self.recipe, self.accelerator = options, recipe, accelerator
        self.backbone = BACKBONES[recipe.profile]
        self.device: torch.device = accelerator.device
        self.dtype = choose_training_dtype(options.precision, self.device)
        self.num_accumulated = accumulated(recipe, options.batch_size, accelerator.num_processes)
        self.root = options.models_dir.expanduser()
        self.backbone.check_installed(self.root, recipe.weights)
        self.pairs: PairDataset = open_pairs(options.pairs)
        self.captions = read_captions(options.captions, self.pairs)
        self.num_draws = self.pairs.num_draws  # those that finish later have no features
        self.cache = FeatureCache(options.features or options.out / "features")
        with accelerator.main_process_first():  # the others find what it wrote
            self.prepare_folders()
        silence_libraries()
        self.make_features()
        self.network = self.build()
        self.objective = self.backbone.objective(self.root)
        self.trained = TrainedParameters(self.network)

    def prepare_folders(self) -> None:
        """Refuses a folder with a run of another recipe, and a cache of other features."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        path = self.options.out / "recipe.json"
        told = asdict(self.recipe) | {"seed": self.options.seed}
        told = json.loads(json.dumps(told))
        if path.exists():
            found = json.loads(path.read_text())
            differing = [name for name in told if name != "num_steps" and found.get(name) != told[name]]
            if differing:
                raise ValueError(f"{self.options.out} holds a run with other {', '.join(differing)}: use another --out")
        if self.accelerator.is_main_process:
            replace_text(path, json.dumps(told, indent=1))
        self.cache.open(origin_of(self.root, self.backbone, self.pairs, self.recipe))

    def make_features(self) -> None:
        accelerator = self.accelerator
        share = Share(accelerator.process_index, accelerator.num_processes)
        where = self.device, self.dtype, share
        write_texts(self.cache, self.captions, self.root, self.backbone, self.recipe.weights, *where)
        write_images(self.cache, self.pairs, self.root, self.backbone, self.recipe, *where)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        accelerator.wait_for_everyone()

    def build(self) -> FusedNetwork:
        denoiser = self.backbone.load(self.root, self.recipe.weights, self.device, self.dtype)
        torch.manual_seed(self.options.seed)
        seen = self.cache.batch([(self.pairs.training[0], 0, NULL_CAPTION)])
        network = self.backbone.fuse(denoiser, self.recipe, seen).to(self.device)
        if self.options.checkpointing:
            network.checkpoint()
        return network

    def sample(self, draws: Draws) -> list[tuple[int, int, str]]:
        """(photograph, draw, caption) of one batch."""
        chosen = []
        for _ in range(self.options.batch_size):
            i, draw = int(draws.rng.choice(self.pairs.training)), int(draws.rng.integers(self.num_draws))
            is_null = draws.rng.random() < self.recipe.text_dropout
            chosen.append((i, draw, NULL_CAPTION if is_null else self.captions[i]))
        return chosen

    def train(self) -> None:
        """To the end of the recipe, from where an earlier run into the same folder was cut off."""
        accelerator, recipe = self.accelerator, self.recipe
        loop = LoopConfig(
            num_steps=recipe.num_steps,
            minutes=math.inf,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            warmup_steps=recipe.warmup_steps,
            final_fraction=1.0,
            ema_decay=recipe.ema_decay,
            gradient_clip=recipe.gradient_clip,
            num_accumulated=self.num_accumulated,
            log_every=self.options.log_every,
            validate_minutes=self.options.save_minutes,
        )
        shared = accelerator.prepare_model(self.network)
        losses = FusionLoss(shared, recipe, self.objective, accelerator.num_processes)
        is_main = accelerator.is_main_process
        trainer = Trainer(self.trained, loop, self.options.out, recipe.total_batch, companion=losses, is_main=is_main)
        self.check_alike("step", torch.tensor(float(trainer.step_index)))
        self.tell()

        def step(_: nn.Module) -> dict[str, Tensor]:
            draws = Draws(self.options.seed, accelerator.process_index, losses.num_batches)
            return losses(self.cache.batch(self.sample(draws)).to(self.device), draws)

        trainer.run(step, self.validate if is_main else None)
        self.check_alike(
            "parameters", torch.stack([p.detach().double().sum() for p in self.trained.parameters()]).sum()
        )

    def check_alike(self, what: str, value: Tensor) -> None:
        """Raises ValueError when the processes disagree: without a folder they share they cannot resume together."""
        found = self.accelerator.gather(value.reshape(1).to(self.device, torch.float32)).tolist()
        if len(set(found)) > 1:
            raise ValueError(f"the processes have different {what}: {found}; do they all see {self.options.out}?")

    def tell(self) -> None:
        if self.accelerator.is_main_process:
            count = sum(p.numel() for p in self.trained.parameters())
            print(
                f"{count:,} parameters are trained beside {self.recipe.weights}; batch {self.recipe.total_batch} = "
                f"{self.options.batch_size} x {self.accelerator.num_processes} process(es) x {self.num_accumulated}",
                flush=True,
            )

    @property
    def fusion_path(self) -> Path:
        return self.options.out / Path(fusion_file(self.recipe.weights)).name

    def validate(self, average: nn.Module) -> str:
        """Saves the averaged fusion; what it gains on held-out pairs over the backbone alone."""
        held_out = self.pairs.held_out[:NUM_HELD_OUT]
        with self.trained.replaced_by(average):
            self.backbone.save(self.fusion_path, self.network)
            if not held_out:
                return "saved"
            found = [self.judge(i) for i in held_out]
        fused, alone = (sum(values) / len(held_out) for values in zip(*found, strict=True))
        found_on = f"{self.objective.name} loss on {len(held_out)} held-out pairs"
        return f"saved; {found_on} {fused:.5f}, without the fusion {alone:.5f}"

    def judge(self, photograph: int) -> tuple[float, float]:
        batch = self.cache.batch([(photograph, 0, self.captions[photograph])]).to(self.device)
        return judge(self.network, batch, self.objective, JUDGED_TIMESTEPS)
