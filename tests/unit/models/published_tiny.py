"""Tiny random checkpoints of `quality`, saved in the layout that the hub publishes."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from models.backbones.dit4sr import load_denoiser
from models.backbones.fusion_files import fusion_file, save_fusion
from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer
from models.fusion.experts import FusionConfig
from models.fusion.joint import JointFusion, JointFusionConfig
from models.routing.router import RouterConfig

TEXT_FEATURES = 32  # of one T5 token; the two CLIPs together have fewer, as published
POOLED = 20  # both CLIPs' projections

DENOISER = {
    "_class_name": "SD3Transformer2DModel",
    "_diffusers_version": "0.31.0",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_FEATURES,
    "caption_projection_dim": 16,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 80,
    "dual_attention_layers": [0],
    "qk_norm": "rms_norm",
}


def save_denoiser(root: Path, weights: str = "dit4sr_r1", seed: int = 0, **changes) -> DiffusionTransformer:
    """Writes `root`/acceptee/DiT4SR/`weights`/transformer: "control" in float32, the rest in float16, as published."""
    folder = root / "acceptee" / "DiT4SR" / weights / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(DENOISER | changes))
    torch.manual_seed(seed)
    variant = "r1" if weights == "dit4sr_r1" else "orig"
    network = DiffusionTransformer(DenoiserConfig.from_published(DENOISER | changes, variant=variant)).eval()
    state = {
        name: value.contiguous() if "control" in name else value.half() for name, value in network.state_dict().items()
    }
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return network


def save_sd35(root: Path, *, with_t5: bool = True, seed: int = 0) -> Path:
    """Writes VAE, text encoders, tokenizers and scheduler into `root`/stabilityai/stable-diffusion-3.5-medium."""
    folder = root / "stabilityai" / "stable-diffusion-3.5-medium"
    torch.manual_seed(seed)
    save_clip(folder, "", width=12, projection=8)
    save_clip(folder, "_2", width=16, projection=POOLED - 8)
    if with_t5:
        save_t5(folder)
    save_vae(folder / "vae")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0).save_pretrained(folder / "scheduler")
    return folder


def save_vae(folder: Path) -> None:
    """f8 with 16 channels, shift and scale as published; norms over 4 groups keep it small."""
    AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        sample_size=1024,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder)


def save_clip(folder: Path, suffix: str, width: int, projection: int) -> None:
    config = CLIPTextConfig(
        vocab_size=len(clip_vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{suffix}")
    place = folder / f"tokenizer{suffix}"
    place.mkdir(parents=True)
    (place / "vocab.json").write_text(json.dumps(clip_vocabulary()))
    (place / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(place, model_max_length=77, pad_token="<|endoftext|>").save_pretrained(place)


def clip_vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz,.-0123456789"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return {word: i for i, word in enumerate(words)}


def save_t5(folder: Path) -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,.-0123456789"]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0).save_pretrained(folder / "tokenizer_3")
    config = T5Config(vocab_size=len(pieces), d_model=TEXT_FEATURES, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")


FUSION = JointFusionConfig(
    fusion=FusionConfig(width=16, num_heads=2, dino_channels=128, map_channels=4),
    router=RouterConfig(width=12, num_heads=2, num_layers=1),
)


def save_joint_fusion(root: Path, seed: int = 0) -> None:
    """Writes random fusion weights of ours for dit4sr_r1 into `root`/m3esr/quality; the denoiser must be there."""
    torch.manual_seed(seed)
    denoiser = load_denoiser(root, fused=True)
    for name, parameter in denoiser.named_parameters():
        if "_fused." in name:
            parameter.normal_(std=0.1)
    save_fusion(root / fusion_file("dit4sr_r1"), JointFusion(FUSION, denoiser))
