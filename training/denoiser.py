"""Stage 3b: router, experts, temperatures, text encoder, denoiser and detail network, on a frozen perception network.

python -m training.denoiser (--pairs DIR --features DIR | --photographs DIR) --coarse FILE --perception FILE
    --names FILE --out DIR [--init PROFILE] [--validation DIR --lpips FILE] [--minutes N]

The coarse network is frozen, or with --train-coarse goes on learning beside the rest, from losses of its own.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.checkpoint import read_config, read_tensors, save_checkpoint
from models.configs import COMPACT_DENOISER, M3ESRConfig
from models.fusion.experts import FusionConfig
from models.modalities.perception import PerceptionNet, load_perception
from models.modalities.text import TextConfig, train_tokenizer
from models.network import GUIDES, M3ESR
from models.pipeline import Upscaler
from models.requests import UpscaleOptions
from models.routing.coarse import CoarseConfig
from training.coarse import FAITHFUL
from training.guided import GuidedPairs, GuidedPool, PoolLook
from training.guided_stage import MARGIN, PARTS, GuidedConfig, GuidedStage
from training.image_losses import ImageLosses, ImageLossWeights
from training.loop import LoopConfig, Trainer
from training.stream import add_source_arguments, open_pool
from training.validation import Validation
from training.widening import widen

# What --only trains, by the start of its parameters' names. "guidance": all that reaches the detail network by tokens.
# "experts": what the modalities add to it, and when; beside a transformer that learns too they are left with little
ONLY = {
    "detail": ("detail.",),
    "guidance": ("fusion.", "text_encoder.", "denoiser.", "detail.listen."),
    "experts": ("fusion.", "router."),
}
TOKENS = 12  # a side of a crop by default: 192 px, seen with 32 px around it
# words that callers write and the captioner does not, so that the tokenizer keeps them whole
EXTRA_CAPTIONS = (
    "a photograph of a person, a face, a portrait, an animal, a cat, a dog, a bird, a building, a street, a city",
    "trees, grass, leaves, flowers, water, sea, river, mountains, rocks, sky, clouds, snow, sand, food, text, a sign",
    "high quality, highly detailed, sharp focus, natural texture, low quality, blurry, noisy, jpeg artifacts, smooth",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_batch_arguments(parser)
    for name in ("coarse", "perception", "names", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from this profile's folder, with the networks named above")
    parser.add_argument(
        "--detail", type=Path, help="detail network of training.coarse --base, or a coarse one; absent: that of --init"
    )
    parser.add_argument("--train-coarse", action="store_true", help="the coarse network learns too, FAITHFUL as ever")
    parser.add_argument("--only", choices=ONLY, help="everything else is frozen")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="a side of the crop, of 16 px each")
    parser.add_argument("--detail-rate", type=float, default=1.0, help="its share of the learning rate")
    parser.add_argument("--without", choices=PARTS, help="never use this part: a row of Table 3 (none: no modality)")
    parser.add_argument("--freeze-router", action="store_true", help="after training.router")
    parser.add_argument(
        "--unbiased-weight", type=float, default=GuidedConfig.unbiased_weight, help="of the theorem's E[w] = w_bar"
    )
    parser.add_argument("--validation", type=Path, help="folder with hr/ and lr_real/")
    parser.add_argument("--validation-limit", type=int)
    ImageLossWeights.add_arguments(parser)
    parser.add_argument("--num-steps", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--num-layers", type=int, default=COMPACT_DENOISER.num_layers)
    parser.add_argument("--ema-decay", type=float, default=0.998)
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    check_batch_arguments(parser, args)
    if args.train_coarse and args.only:
        parser.error(f"--only {args.only} freezes the coarse network, which --train-coarse would train")
    if args.only == "experts" and args.without == "none":
        parser.error("--only experts has nothing to train with --without none, which is without any of them")
    if args.train_coarse and not args.lpips:
        parser.error("--train-coarse needs --lpips, the weights of LPIPS-squeeze")
    train(args)


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """What `open_batches` reads."""
    add_source_arguments(parser)
    parser.add_argument("--features", type=Path, help="folder made by training.features from --pairs")


def check_batch_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.pairs and not args.features:
        parser.error("--pairs needs --features, what the extractors saw in them")


def open_batches(
    args: argparse.Namespace, perception: PerceptionNet, names: tuple[str, ...]
) -> GuidedPairs | GuidedPool:
    if args.pairs:
        return GuidedPairs(args.pairs, args.features)
    return GuidedPool(open_pool(args, PoolLook(perception.to(args.device), names)))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    perception, names = load_perception(args.perception), tuple(json.loads(args.names.read_text()))
    dataset = open_batches(args, perception, names)
    args.out.mkdir(parents=True, exist_ok=True)
    network, tokenizer = build(args, dataset, perception, names)
    freeze(network, args)
    network.to(args.device)
    judge = ImageLosses(ImageLossWeights.from_arguments(args), args.lpips, args.seed, args.device)
    coarse_judge = ImageLosses(FAITHFUL, args.lpips, args.seed, args.device) if args.train_coarse else None
    stage = GuidedStage(network, tokenizer, stage_config(args), judge, args.seed, coarse_judge)
    rng = np.random.default_rng(args.seed)

    def step(_: nn.Module) -> dict[str, Tensor]:
        return stage.losses(dataset.sample_batch(rng, args.batch_size, args.tokens, MARGIN).to(args.device))

    validation = None
    if args.validation and args.lpips:
        validation = Validation(args.validation, args.lpips, args.out / "samples", limit=args.validation_limit)

    def keep(average: nn.Module) -> None:
        save(args.out, average, tokenizer)
        if args.train_coarse:  # for training.blend and training.graft
            save_checkpoint(args.out / "coarse.safetensors", average.coarse.state_dict(), average.config.coarse)

    def validate(average: nn.Module) -> str:
        keep(average)
        if validation is None:
            return "saved"
        upscaler = Upscaler(average, tokenizer, "compact")

        def upscale(lr_image: Tensor) -> Tensor:
            result = upscaler.upscale(lr_image[0].permute(1, 2, 0).numpy(), UpscaleOptions())
            return torch.from_numpy(result.sr_image).permute(2, 0, 1)[None]

        return validation(upscale)

    loop = LoopConfig(
        num_steps=args.num_steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        weight_decay=0.01,
        ema_decay=args.ema_decay,
        log_every=args.log_every,
        validate_minutes=8,
    )
    rates = {"detail.": args.detail_rate}
    trainer = Trainer(network, loop, args.out, args.batch_size, companion=judge.adversary, rates=rates)
    keep(trainer.run(step, validate))


def stage_config(args: argparse.Namespace) -> GuidedConfig:
    config = GuidedConfig(without=args.without, unbiased_weight=args.unbiased_weight)
    if args.only == "experts":  # they learn from the picture alone, as their gain is measured there, and at every step
        return replace(config, guidance_dropout=0.0, velocity_weight=0.0)
    return config


def build(
    args: argparse.Namespace, dataset: GuidedPairs | GuidedPool, perception: PerceptionNet, names: tuple[str, ...]
) -> tuple[M3ESR, Tokenizer]:
    """The whole network around the coarse and perception checkpoints, with a fitted codec."""
    earlier = read_config(args.init / "compact.safetensors", M3ESRConfig) if args.init else None
    detail = earlier.detail if earlier else None
    if args.detail:  # a coarse network's kind: guides and tokens join what it does not have yet
        detail = replace(read_config(args.detail, CoarseConfig), num_guides=GUIDES, token_width=COMPACT_DENOISER.width)
    config = M3ESRConfig(
        coarse=read_config(args.coarse, CoarseConfig),
        perception=perception.config,
        # of the two readings of the query (Eq. 2, Eq. 15) the one in which the modality's own features come through
        fusion=FusionConfig(dino_channels=perception.config.dino_channels, query="patch", is_local=True),
        denoiser=replace(COMPACT_DENOISER, num_layers=args.num_layers),
        segment_names=names,
        # of training.reliability: frozen here, it knows nothing of this stage's networks
        reliability=earlier.reliability if earlier else None,
        detail=detail,
    )
    network = M3ESR(config)
    network.coarse.load_state_dict(read_tensors(args.coarse))
    network.perception.load_state_dict(perception.state_dict())
    network.denoiser.reset_for_training()
    if args.init:
        network.load_state_dict(learned_tensors(args.init, config), strict=False)
        shutil.copy(args.init / "tokenizer.json", args.out)
    else:
        fit_codec(network, dataset)
    if args.detail:
        network.detail = widen(read_tensors(args.detail), read_config(args.detail, CoarseConfig), config.detail)
    for part in (network.coarse, network.detail):
        if part is not None:
            part.to(memory_format=torch.channels_last)
    vocabulary = args.out / "tokenizer.json"
    if not vocabulary.exists():
        train_tokenizer([*dataset.all_captions(), *EXTRA_CAPTIONS * 50], TextConfig()).save(str(vocabulary))
    return network, Tokenizer.from_file(str(vocabulary))


def freeze(network: M3ESR, args: argparse.Namespace) -> None:
    """What this run does not train."""
    frozen: list[nn.Module | None] = [network.perception, network.reliability]
    if args.only:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(ONLY[args.only]))
    if not args.train_coarse:
        frozen.append(network.coarse)
    if args.freeze_router:
        frozen.append(network.router)
    for part in frozen:
        if part is not None:
            part.requires_grad_(False)


def learned_tensors(profile: Path, config: M3ESRConfig) -> dict[str, Tensor]:
    """What this stage learned in an earlier run: everything but the coarse and the perception network.

    Experts of another reading begin anew: their weights would mean something else.
    """
    path = profile / "compact.safetensors"
    earlier, fresh = read_config(path, M3ESRConfig), ["coarse.", "perception."]
    if earlier.fusion != config.fusion:
        fresh.append("fusion.experts.")
    if earlier.detail != config.detail:
        fresh.append("detail.")
    return {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(tuple(fresh))}


def fit_codec(network: M3ESR, dataset: GuidedPairs | GuidedPool) -> None:
    """PCA and statistics of the latents on some images of the training set: closed form, seconds."""
    lr, hr = (images.cpu() for images in dataset.whole())
    with torch.inference_mode():
        upscaled = torch.cat([network.estimate(image)[0] for image in lr.split(1)])
        network.codec.fit(hr, upscaled)


def save(folder: Path, network: nn.Module, tokenizer: Tokenizer) -> None:
    """Half precision on disk: the difference to float32 is far below a step of 8-bit output."""
    save_checkpoint(folder / "compact.safetensors", network.state_dict(), network.config, torch.float16)
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
