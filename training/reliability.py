"""Stage 6: how far each modality's map can be trusted at each patch. Ours, not the paper's: models.routing.reliability.

    python -m training.reliability --pairs DIR --profile DIR --out DIR [--minutes N] [--into PROFILE]
    python -m training.reliability --merge FILE --into PROFILE

A head sees the LR image and one modality's map, whole or damaged in a region, and answers how well that map agrees
with the map of the undegraded photograph (`evaluation.agreement`), as the rank among undamaged maps: 0.9 is "better
than 90 % of all patches", 0 is worse than any. Cross-entropy against that rank makes the answer its expected value. So
damage needs no label: where it changed nothing it costs nothing, and a map that noise in the LR image spoiled is no
better than one spoiled on purpose.

What is learned depends on the LR image and the perception network alone (edges are those of the profile's coarse
image), so `reliability.safetensors` can be merged into any checkpoint with the same extractors. A calibration of the
uncertainty is bound to the checkpoint's bytes: fit it again afterwards.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.agreement import map_agreement
from evaluation.statistics import mean_of_known, rank_correlation
from models.checkpoint import read_config, read_tensors, save_checkpoint, sha256
from models.configs import VISUAL_MODALITIES, M3ESRConfig
from models.pipeline import Upscaler
from models.region import crop
from models.routing.reliability import PATCH, ModalityReliability, ReliabilityConfig, map_cues
from models.tiling import Tile
from training.calibrate import choose
from training.loop import LoopConfig, Trainer
from training.map_cache import TOKENS, MapCache, write_maps
from training.map_damage import DAMAGE, OTHER, damage, damage_region
from training.pairs import PairDataset
from training.parts import put_part

FILE = "reliability.safetensors"
DAMAGED_SHARE = 0.6  # of the maps seen in training
SIDE = 24  # tokens of a crop
EXPECTATION_WEIGHT = 0.25
NUM_QUANTILES = 1024
NUM_RANKED = 100  # photographs whose undamaged maps the ranks and the centre are taken from


class Ranks:
    """The distribution of agreement over undamaged maps, per modality."""

    def __init__(self, agreements: dict[str, Tensor]):
        shares = torch.linspace(0, 1, NUM_QUANTILES, dtype=torch.float64)
        self.quantiles = {name: quantiles(values.flatten(), shares) for name, values in agreements.items()}

    def rank(self, name: str, agreement: Tensor) -> Tensor:
        """Agreement of any shape -> the share of undamaged patches that agree less, in [0, 1]; ties count half."""
        table = self.quantiles[name]
        low, high = (torch.searchsorted(table, agreement.contiguous(), right=right) for right in (False, True))
        return (low + high) / (2 * len(table))


def quantiles(values: Tensor, shares: Tensor) -> Tensor:
    """torch.quantile takes no more than 16 million values, and numpy's any."""
    return torch.from_numpy(np.quantile(values.numpy(), shares.numpy())).float()


@dataclass(frozen=True)
class Views:
    """LR images with what their extractors saw, whole or damaged, and what they see in the undegraded photographs."""

    lr_image: Tensor  # (B, 3, h, w)
    tokens: Tensor  # (B, T, h/4, w/4)
    given: dict[str, Tensor]  # modalities, as the fusion takes them
    reference: dict[str, Tensor]


class ReliabilityData:
    """Views of photographs, whole or in random crops, with the modalities named."""

    def __init__(
        self, dataset: PairDataset, cache: MapCache, photographs: list[int], names: tuple[str, ...] = VISUAL_MODALITIES
    ):
        self.dataset, self.cache, self.photographs, self.names = dataset, cache, photographs, names

    def whole(self, photograph: int, draw: int = 0, window: Tile | None = None) -> Views:
        """One photograph, undamaged; only the part under a window of tokens, if given."""
        lr_image = self.dataset.pair(photograph, draw)[0][None]
        given = self.cache.maps(photograph, (*self.names, TOKENS), draw, window)
        tokens = given.pop(TOKENS)
        return Views(
            lr_image if window is None else crop(lr_image, window, PATCH),
            tokens,
            given,
            self.cache.maps(photograph, self.names, None, window),
        )

    def sample(self, rng: np.random.Generator) -> Views:
        """A token-aligned crop of a random photograph and draw, half of them mirrored."""
        photograph, draw = int(rng.choice(self.photographs)), int(rng.integers(self.cache.num_draws))
        height, width = (min(SIDE, side) for side in self.cache.size)
        top, left = (int(rng.integers(s - t + 1)) for s, t in zip(self.cache.size, (height, width), strict=True))
        views = self.whole(photograph, draw, Tile(top, left, height, width))
        return mirror(views) if rng.random() < 0.5 else views


def mirror(views: Views) -> Views:
    given, reference = ({n: m.flip(-1) for n, m in seen.items()} for seen in (views.given, views.reference))
    return Views(views.lr_image.flip(-1), views.tokens.flip(-1), given, reference)


class ReliabilityStage:
    """Batches with damage, and the loss of their answers."""

    def __init__(self, data: ReliabilityData, ranks: Ranks, batch_size: int, seed: int):
        self.data, self.ranks, self.batch_size = data, ranks, batch_size
        self.rng = np.random.default_rng(seed)

    def batch(self) -> Views:
        """Crops, of which some maps are damaged."""
        rows = [self.data.sample(self.rng) for _ in range(self.batch_size)]
        given, reference = {}, {}
        for name in self.data.names:
            seen = []
            for k, row in enumerate(rows):
                other, is_damaged = rows[k - 1].given[name], self.rng.random() < DAMAGED_SHARE
                whole = row.given[name]
                seen.append(damage_region(whole, other, name, self.rng) if is_damaged else whole)
            given[name], reference[name] = torch.cat(seen), torch.cat([row.reference[name] for row in rows])
        lr_image, tokens = (torch.cat([getattr(row, part) for row in rows]) for part in ("lr_image", "tokens"))
        return Views(lr_image, tokens, given, reference)

    def losses(self, network: nn.Module) -> dict[str, Tensor]:
        assert isinstance(network, ModalityReliability)
        views = self.batch()
        losses, expectation = {}, torch.zeros(())
        for name, (log_odds, expected) in network.judge(views.lr_image, views.tokens, views.given).items():
            rank = self.ranks.rank(name, map_agreement(name, views.given[name], views.reference[name]))
            losses[name] = F.binary_cross_entropy_with_logits(log_odds, rank)
            expectation = expectation + expectation_loss(expected, map_cues(name, views.reference[name]))
        names = list(losses)
        losses["expectation"] = expectation / len(names)
        return losses | {"loss": torch.stack([losses[name] for name in names]).sum() + EXPECTATION_WEIGHT * expectation}


def expectation_loss(expected: Tensor, cues: Tensor) -> Tensor:
    """Squared error as a share of the cues' own variance: 1 is what their mean alone would reach."""
    return F.mse_loss(expected, cues) / cues.var(dim=(0, 2, 3)).mean().clamp_min(1e-3)


def measure_agreement(data: ReliabilityData, photographs: list[int]) -> dict[str, Tensor]:
    """Agreement (N, h, w) of the undamaged maps of draw 0 per modality."""
    found: dict[str, list[Tensor]] = {name: [] for name in data.names}
    for i in photographs:
        views = data.whole(i)
        for name, agreements in found.items():
            agreements.append(map_agreement(name, views.given[name], views.reference[name]))
    return {name: torch.cat(values) for name, values in found.items()}


@torch.no_grad()
def centre(network: ModalityReliability, data: ReliabilityData, photographs: list[int]) -> None:
    """Sets the centre so that over undamaged maps the mean of sigmoid(gain * (rho - centre)) is 1/2: E[w] = w_bar."""
    views = (data.whole(i) for i in photographs)
    answers = [network(view.lr_image, view.tokens, view.given) for view in views]
    for name in data.names:
        log_odds = torch.cat([answer[name].flatten() for answer in answers])
        low, high = float(log_odds.min()), float(log_odds.max())
        for _ in range(30):
            middle = (low + high) / 2
            is_high = float((network.config.gain * (log_odds - middle)).sigmoid().mean()) > 0.5
            low, high = (middle, high) if is_high else (low, middle)
        network.centre[network.config.modalities.index(name)] = (low + high) / 2


@torch.no_grad()
def report(network: ModalityReliability, data: ReliabilityData, photographs: list[int], ranks: Ranks) -> list[str]:
    """Per modality on photographs held out: rank correlations with agreement, and mean answer / mean true rank when
    whole and when damaged all over. Lines to print.
    """
    rng, kinds = np.random.default_rng(0), (OTHER, *DAMAGE)
    lines = [f"{'':13s} rank corr. (within)  " + "  ".join(f"{kind:>11s}" for kind in ("whole", *kinds))]
    for name in data.names:
        answers, agreements, means = [], [], list[tuple[tuple[float, float], ...]]()
        for k, i in enumerate(photographs):
            views, other = data.whole(i), data.whole(photographs[k - 1]).given[name]
            whole, true = views.given[name], views.reference[name]
            seen = torch.cat([whole, *(damage(whole, other, name, kind, rng) for kind in kinds)])
            lr_images, tokens = (t.expand(len(seen), -1, -1, -1) for t in (views.lr_image, views.tokens))
            answer = network(lr_images, tokens, {name: seen})[name].sigmoid()
            agreement = map_agreement(name, seen, true.expand_as(seen))
            rank = ranks.rank(name, agreement)
            means.append(tuple((float(a.mean()), float(r.mean())) for a, r in zip(answer, rank, strict=True)))
            answers.append(answer[0].numpy())
            agreements.append(agreement[0].numpy())
        pooled = rank_correlation(np.stack(answers), np.stack(agreements))
        within = mean_of_known(rank_correlation(a, b) for a, b in zip(answers, agreements, strict=True))
        columns = "  ".join("{:5.3f}/{:5.3f}".format(*column) for column in np.mean(means, axis=0))
        lines.append(f"{name:13s} {pooled:10.3f} ({within:6.3f})  {columns}")
    return lines


def merge(path: Path, profile: Path) -> None:
    """Puts trained heads into the checkpoint of a profile's folder, in the place of any that it had.

    Raises ValueError when they do not fit its extractors.
    """
    checkpoint = profile / "compact.safetensors"
    heads, config = read_config(path, ReliabilityConfig), read_config(checkpoint, M3ESRConfig)
    perception = config.perception
    if (heads.dino_channels, heads.token_channels) != (perception.dino_channels, perception.width):
        raise ValueError(
            f"{path} reads {heads.dino_channels} DINO channels of {heads.token_channels} and {checkpoint} has "
            f"{perception.dino_channels} of {perception.width}: train the heads on that profile"
        )
    merged = put_part(read_tensors(checkpoint), "reliability", read_tensors(path))
    save_checkpoint(checkpoint, merged, replace(config, reliability=heads), torch.float16)
    print(f"merged into {checkpoint}, now sha256 {sha256(checkpoint)}")
    if (profile / "uncertainty.json").exists():
        print(f"fit {profile / 'uncertainty.json'} again (training.calibrate): it belongs to the checkpoint before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "profile", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--into", type=Path, help="a profile's folder whose checkpoint takes the heads")
    parser.add_argument("--merge", type=Path, help=f"train nothing: put this {FILE} into --into")
    parser.add_argument("--init", type=Path, help=f"a {FILE} to go on from, as a new run")
    parser.add_argument("--only", nargs="+", choices=VISUAL_MODALITIES, help="these heads, the rest as in --init")
    parser.add_argument("--images", type=int, default=400, help="training photographs to look at")
    parser.add_argument("--draws", type=int, default=1, help="degraded versions of each")
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.merge is None:
        if None in (args.pairs, args.profile, args.out):
            parser.error("training needs --pairs, --profile and --out; --merge FILE --into PROFILE needs neither")
        if args.only is not None and args.init is None:
            parser.error("--only needs --init, from which the other heads come")
        args.merge = train(args)
    elif args.into is None:
        parser.error("--merge needs --into PROFILE")
    if args.into is not None:
        try:
            merge(args.merge, args.into)
        except ValueError as error:
            parser.error(str(error))


def train(args: argparse.Namespace) -> Path:
    torch.manual_seed(args.seed)
    network = Upscaler.load("compact", checkpoint=args.profile, with_calibration=False).network
    dataset = PairDataset(args.pairs)
    training, held_out = choose(args.pairs, args.images)
    write_maps(network, dataset, args.out / "maps", args.draws, training + held_out)
    names = tuple(args.only or VISUAL_MODALITIES)
    data = ReliabilityData(dataset, MapCache(args.out / "maps", args.draws), training, names)
    ranked = training[:: max(1, len(training) // NUM_RANKED)]
    ranks = Ranks(measure_agreement(data, ranked))
    stage = ReliabilityStage(data, ranks, args.batch_size, args.seed)
    perception = network.config.perception
    heads = ModalityReliability(
        ReliabilityConfig(dino_channels=perception.dino_channels, token_channels=perception.width)
    )
    if args.init is not None:
        heads.load_state_dict(read_tensors(args.init))
    if args.only is not None:
        heads.requires_grad_(False)
        for name in names:
            heads.heads[name].requires_grad_(True)
    out = args.out / FILE

    def validate(average: nn.Module) -> str:
        assert isinstance(average, ModalityReliability)
        centre(average, data, ranked)
        save_checkpoint(out, average.state_dict(), average.config, torch.float16)
        return "\n" + "\n".join(report(average, data, held_out, ranks))

    loop = LoopConfig(
        num_steps=args.num_steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        weight_decay=0.01,
        warmup_steps=30,
        ema_decay=0.99,
        validate_minutes=5,
    )
    Trainer(heads, loop, args.out, args.batch_size).run(stage.losses, validate)
    return out


if __name__ == "__main__":
    main()
