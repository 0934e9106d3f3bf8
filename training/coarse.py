"""Stage 1: the coarse network, first on Charbonnier alone, then with perceptual and adversarial terms.

python -m training.coarse --pairs DIR --out DIR [--init FILE] [--validation DIR --lpips FILE] [--minutes N]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.lpips import LpipsSqueeze
from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.routing.coarse import CoarseConfig, CoarseNetwork, upscale
from training.adversarial import Adversary, AdversaryConfig
from training.loop import LoopConfig, Trainer
from training.losses import charbonnier, edge_loss, grid_loss, robust_perceptual
from training.pairs import PairDataset
from training.validation import Validation
from training.widening import widen

COARSE = CoarseConfig(widths=(48, 96, 192), num_blocks=(2, 2, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder made by training.pairs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="folder with hr/ and lr_real/")
    parser.add_argument("--validation-limit", type=int, help="score only this many of its images")
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS-squeeze, .npz")
    parser.add_argument("--lpips-weight", type=float, default=0.0)
    parser.add_argument("--adversarial-weight", type=float, default=0.0)
    parser.add_argument("--grid-weight", type=float, default=0.2, help="joins the perceptual term")
    parser.add_argument("--edge-weight", type=float, default=0.02, help="joins the perceptual term")
    parser.add_argument("--init", type=Path, help="start from this checkpoint, or one with a smaller network")
    parser.add_argument("--num-steps", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr-crop", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema-decay", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


def start(init: Path | None) -> CoarseNetwork:
    """A fresh network, or the trained one of `init`, widened to today's size if it is smaller."""
    if init is None:
        return CoarseNetwork(COARSE)
    return widen(read_tensors(init), read_config(init, CoarseConfig), COARSE)


def make_step(args: argparse.Namespace, adversary: Adversary | None) -> Callable[[nn.Module], dict[str, Tensor]]:
    """What one step computes: the weighted losses of a batch. Convolutions run in bfloat16, losses in float32."""
    dataset, rng = PairDataset(args.pairs), np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    perceptual = LpipsSqueeze(args.lpips) if args.lpips and args.lpips_weight > 0 else None

    def step(network: nn.Module) -> dict[str, Tensor]:
        lr_image, hr_image = dataset.sample_batch(rng, args.batch_size, args.lr_crop)
        lr_image, hr_image = (x.contiguous(memory_format=torch.channels_last) for x in (lr_image, hr_image))
        with torch.autocast("cpu", torch.bfloat16):
            sr_image = network(lr_image)
        sr_image = sr_image.float()
        losses = {"pixel": charbonnier(sr_image, hr_image)}
        total = losses["pixel"]
        if perceptual is not None:
            losses["grid"] = grid_loss(sr_image, hr_image)
            losses["edge"] = edge_loss(sr_image, hr_image, generator)
            with torch.autocast("cpu", torch.bfloat16):
                losses["lpips"] = robust_perceptual(perceptual, sr_image, hr_image, generator)
            total = total + args.lpips_weight * losses["lpips"] + args.grid_weight * losses["grid"]
            total = total + args.edge_weight * losses["edge"]
        if adversary is not None:
            upscaled = upscale(lr_image, network.config.scale)
            with torch.autocast("cpu", torch.bfloat16):
                losses["discriminator"] = adversary.improve(sr_image, hr_image, upscaled)
                losses["adversarial"] = adversary.judge(sr_image, hr_image, upscaled)
            total = total + args.adversarial_weight * losses["adversarial"]
        return losses | {"loss": total}

    return step


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    network = start(args.init).to(memory_format=torch.channels_last)
    adversary = Adversary(AdversaryConfig()) if args.adversarial_weight > 0 else None
    step = make_step(args, adversary)
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
    trainer = Trainer(network, loop, args.out, args.batch_size, companion=adversary)

    def validate(network: nn.Module) -> str:
        save_checkpoint(args.out / "coarse.safetensors", network.state_dict(), network.config)
        return validation(network) if validation else "saved"

    trained = trainer.run(step, validate)
    save_checkpoint(args.out / "coarse.safetensors", trained.state_dict(), network.config)


if __name__ == "__main__":
    main()
