"""Stage 1: the coarse network, first on Charbonnier alone, then with perceptual and adversarial terms.

python -m training.coarse (--pairs DIR | --photographs DIR) --out DIR [--init FILE]
    [--validation DIR --lpips FILE] [--minutes N]

With --base FILE instead the detail network (stage 3a), which starts from that frozen coarse network's image; what the
transformer tells it joins in `training.denoiser`.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.configs import COMPACT_DENOISER, M3ESRConfig
from models.network import GUIDES, guide_images
from models.routing.coarse import MARGIN, CoarseConfig, CoarseNetwork, upscale
from training.image_losses import ImageLosses, ImageLossWeights, half_precision
from training.loop import LoopConfig, Trainer
from training.parts import take_part
from training.stream import add_source_arguments, open_pairs
from training.validation import Validation
from training.widening import widen

COARSE = CoarseConfig(widths=(48, 96, 192), num_blocks=(2, 2, 6), has_consistency=True)
DETAIL = replace(COARSE, num_blocks=(2, 2, 10), num_guides=GUIDES, token_width=COMPACT_DENOISER.width)
# what the coarse network is trained for: near the photograph, and only a little sharper than it can be sure of
FAITHFUL = ImageLossWeights(lpips=0.05, edge=0.1, grid=0.05, structure=0.3, pattern=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="folder with hr/ and lr_real/")
    parser.add_argument("--validation-limit", type=int, help="score only this many of its images")
    ImageLossWeights.add_arguments(parser)
    parser.add_argument(
        "--init", type=Path, help="start from this checkpoint, a smaller network's, or a profile's folder"
    )
    parser.add_argument(
        "--base", type=Path, help="the coarse network, or its profile's folder, that --out stands behind"
    )
    parser.add_argument("--num-steps", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr-crop", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema-decay", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    part, config = ("detail", DETAIL) if args.base else ("coarse", COARSE)
    try:
        base = load_coarse(args.base) if args.base else None
        network = start(args.init, part, config)
    except ValueError as error:
        parser.error(str(error))
    train(args, part, network, base)


def read_network(path: Path, part: str) -> tuple[CoarseConfig, dict[str, Tensor]]:
    """Of a file of this stage, or of a profile's folder, whose `part` it is: "coarse" or "detail".

    Raises ValueError when the profile has no such part.
    """
    if not path.is_dir():
        return read_config(path, CoarseConfig), read_tensors(path)
    profile = path / "compact.safetensors"
    config = getattr(read_config(profile, M3ESRConfig), part)
    if config is None:
        raise ValueError(f"{path} has no {part} network")
    return config, take_part(read_tensors(profile), part)


def start(init: Path | None, part: str, config: CoarseConfig) -> CoarseNetwork:
    """A fresh network, or the trained one of `init`: a profile's as large as it is, a file's widened to this size.

    Raises ValueError when the file's is larger, or the profile has none.
    """
    if init is None:
        return CoarseNetwork(config)
    earlier, tensors = read_network(init, part)
    return widen(tensors, earlier, earlier if init.is_dir() else config)


def load_coarse(path: Path) -> CoarseNetwork:
    """A trained coarse network, frozen."""
    config, tensors = read_network(path, "coarse")
    network = CoarseNetwork(config)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


class FromBase(nn.Module):
    """A detail network behind its coarse network, which is not trained, as one: LR image -> SR image."""

    def __init__(self, detail: nn.Module, base: CoarseNetwork):
        super().__init__()
        self.detail, self.base = detail, base

    def forward(self, lr_image: Tensor, margin: int = MARGIN) -> Tensor:
        with torch.no_grad():
            coarse_sr = self.base(lr_image, margin).clamp(0, 1)
            guides = guide_images(coarse_sr - upscale(lr_image, self.base.config.scale))
        return self.detail(lr_image, margin, guides)


def make_step(
    args: argparse.Namespace, judge: ImageLosses, behind_base: Callable[[nn.Module], nn.Module]
) -> Callable[[nn.Module], dict[str, Tensor]]:
    """What one step computes: the weighted losses of a batch."""
    dataset, rng = open_pairs(args), np.random.default_rng(args.seed)

    def step(network: nn.Module) -> dict[str, Tensor]:
        lr_image, hr_image = dataset.sample_batch(rng, args.batch_size, args.lr_crop)
        layout = {"device": args.device, "memory_format": torch.channels_last}
        lr_image, hr_image = lr_image.to(**layout), hr_image.to(**layout)
        with half_precision(args.device):
            sr_image = behind_base(network)(lr_image, margin=0)
        return judge(sr_image.float(), hr_image, lr_image)

    return step


def train(args: argparse.Namespace, part: str, network: CoarseNetwork, base: CoarseNetwork | None) -> None:
    """Trains `network`, the `part` of a profile; a detail network behind `base`."""
    network.to(args.device, memory_format=torch.channels_last)
    if base is not None:
        base.to(args.device)
    judge = ImageLosses(ImageLossWeights.from_arguments(args), args.lpips, args.seed, args.device)

    def behind_base(trained: nn.Module) -> nn.Module:
        return FromBase(trained, base) if base is not None else trained

    validation = None
    if args.validation and args.lpips:
        validation = Validation(args.validation, args.lpips, args.out / "samples", limit=args.validation_limit)
    loop = LoopConfig(
        num_steps=args.num_steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        ema_decay=args.ema_decay,
        log_every=100,
        validate_minutes=8,
    )
    trainer = Trainer(network, loop, args.out, args.batch_size, companion=judge.adversary)

    def save(average: nn.Module) -> None:
        save_checkpoint(args.out / f"{part}.safetensors", average.state_dict(), network.config)

    def validate(average: nn.Module) -> str:
        save(average)
        return validation(behind_base(average)) if validation else "saved"

    save(trainer.run(make_step(args, judge, behind_base), validate))


if __name__ == "__main__":
    main()
