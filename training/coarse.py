"""Stage 1: the coarse network, first on Charbonnier alone, then with a light perceptual term.

python -m training.coarse --pairs DIR --out DIR [--validation DIR --lpips FILE] [--minutes N]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.lpips import LpipsSqueeze
from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.routing.coarse import CoarseConfig, CoarseNetwork
from training.loop import LoopConfig, Trainer
from training.losses import charbonnier, edge_loss, grid_loss, robust_perceptual
from training.pairs import PairDataset
from training.validation import Validation

COARSE = CoarseConfig(widths=(32, 64, 128), num_blocks=(1, 2, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder made by training.pairs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="folder with hr/ and lr_real/")
    parser.add_argument("--validation-limit", type=int, help="score only this many of its images")
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS-squeeze, .npz")
    parser.add_argument("--lpips-weight", type=float, default=0.0)
    parser.add_argument("--grid-weight", type=float, default=0.2, help="joins the perceptual term")
    parser.add_argument("--edge-weight", type=float, default=0.02, help="joins the perceptual term")
    parser.add_argument("--init", type=Path, help="start from this checkpoint")
    parser.add_argument("--num-steps", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr-crop", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    config = read_config(args.init, CoarseConfig) if args.init else COARSE
    network = CoarseNetwork(config).to(memory_format=torch.channels_last)
    if args.init:
        network.load_state_dict(read_tensors(args.init))
    dataset, rng = PairDataset(args.pairs), np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    perceptual = LpipsSqueeze(args.lpips) if args.lpips and args.lpips_weight > 0 else None

    def step(network: nn.Module) -> dict[str, Tensor]:
        lr_image, hr_image = dataset.sample_batch(rng, args.batch_size, args.lr_crop)
        sr_image = network(lr_image.contiguous(memory_format=torch.channels_last))
        losses = {"pixel": charbonnier(sr_image, hr_image)}
        losses["loss"] = losses["pixel"]
        if perceptual is not None:
            losses["lpips"] = robust_perceptual(perceptual, sr_image, hr_image, generator)
            losses["grid"] = grid_loss(sr_image, hr_image)
            losses["edge"] = edge_loss(sr_image, hr_image, generator)
            weights = {"lpips": args.lpips_weight, "grid": args.grid_weight, "edge": args.edge_weight}
            losses["loss"] = losses["pixel"] + sum(weight * losses[name] for name, weight in weights.items())
        return losses

    validation = None
    if args.validation and args.lpips:
        validation = Validation(args.validation, args.lpips, args.out / "samples", limit=args.validation_limit)
    loop = LoopConfig(
        num_steps=args.num_steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        ema_decay=0.998,
        log_every=100,
        validate_minutes=8,
    )
    trainer = Trainer(network, loop, args.out, args.batch_size)

    def validate(network: nn.Module) -> str:
        save_checkpoint(args.out / "coarse.safetensors", network.state_dict(), config)
        return validation(network) if validation else "saved"

    trained = trainer.run(step, validate)
    save_checkpoint(args.out / "coarse.safetensors", trained.state_dict(), config)


if __name__ == "__main__":
    main()
