"""Tiny random checkpoints of the extractors' real classes, saved as the hub has them; and a photograph-like image."""

import json

import torch
from safetensors.torch import save_file

from models.sources import SOURCES


def image(height=64, width=96, seed=0):
    """(1, 3, H, W) in [0, 1]: smooth colours with a few hard edges, so that resizing has something to do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    smooth[..., height // 3 : height // 2, width // 4 : width // 2] = torch.rand(3, 1, 1, generator=generator)
    return (smooth + 0.05 * torch.rand(1, 3, height, width, generator=generator)).clamp(0, 1)


def folder(root, name):
    place = root / SOURCES[name].folder
    place.mkdir(parents=True, exist_ok=True)
    return place


def randomise(model, seed=0, scale=0.3):
    """Random weights large enough that the outputs differ from place to place."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale if parameter.ndim < 2 else scale / parameter[0].numel() ** 0.5)
    return model.eval()


def mask2former(root):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin = SwinConfig(
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin.to_dict(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        num_labels=150,
    )
    model = randomise(Mask2FormerForUniversalSegmentation(config), scale=1.0)
    for name, parameter in model.named_parameters():  # queries that disagree, else one class fills the image
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        elif "layer_norm" in name or "layernorm" in name:
            torch.nn.init.ones_(parameter)
    for embedding in (model.model.transformer_module.queries_features, model.model.transformer_module.queries_embedder):
        torch.nn.init.normal_(embedding.weight, std=3.0)
    place = folder(root, "mask2former")
    model.save_pretrained(place)
    size = {"size": {"height": 384, "width": 384}, "resample": 2, "size_divisor": 32}
    (place / "preprocessor_config.json").write_text(json.dumps(size))
    return model


def depth_anything(root):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone.to_dict(),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 8, 8, 16],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    model = randomise(DepthAnythingForDepthEstimation(config))
    torch.nn.init.ones_(model.head.conv3.bias)  # else its last ReLU may leave nothing
    place = folder(root, "depth-anything")
    model.save_pretrained(place)
    told = {
        "size": {"height": 56, "width": 56},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (place / "preprocessor_config.json").write_text(json.dumps(told))
    return model


def dinov3(root=None, has_bias=True):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_register_tokens=4,
        query_bias=has_bias,
        value_bias=has_bias,
    )
    model = randomise(DINOv3ViTModel(config))
    if root is not None:
        model.save_pretrained(folder(root, "dinov3"))
    return model


def timm_state(model):
    """The weights of a DINOv3ViTModel under the names of timm's Eva, whose qkv is one matrix."""
    state = model.state_dict()
    timm = {
        "cls_token": state["embeddings.cls_token"],
        "reg_token": state["embeddings.register_tokens"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
        "rope.periods": torch.ones(4),
    }
    layers = "model.layer." if "model.layer.0.norm1.weight" in state else "layer."  # transformers 5, 4
    for i in range(model.config.num_hidden_layers):
        old, new = f"{layers}{i}.", f"blocks.{i}."
        weights = [state[f"{old}attention.{letter}_proj.weight"] for letter in "qkv"]
        timm[f"{new}attn.qkv.weight"] = torch.cat(weights)
        if model.config.query_bias:
            timm[f"{new}attn.q_bias"] = state[f"{old}attention.q_proj.bias"]
            timm[f"{new}attn.v_bias"] = state[f"{old}attention.v_proj.bias"]
        timm[f"{new}gamma_1"] = state[f"{old}layer_scale1.lambda1"]
        timm[f"{new}gamma_2"] = state[f"{old}layer_scale2.lambda1"]
        for kind in ("weight", "bias"):
            timm[f"{new}attn.proj.{kind}"] = state[f"{old}attention.o_proj.{kind}"]
            timm[f"{new}norm1.{kind}"] = state[f"{old}norm1.{kind}"]
            timm[f"{new}norm2.{kind}"] = state[f"{old}norm2.{kind}"]
            timm[f"{new}mlp.fc1.{kind}"] = state[f"{old}mlp.up_proj.{kind}"]
            timm[f"{new}mlp.fc2.{kind}"] = state[f"{old}mlp.down_proj.{kind}"]
    return {name: value.clone() for name, value in timm.items()}


def dinov3_timm(root, has_bias=False):
    model = dinov3(has_bias=has_bias)
    place = folder(root, "dinov3-timm")
    save_file(timm_state(model), str(place / "model.safetensors"))
    (place / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_dinov3", "num_features": 128}))
    return model


def extractors(root):
    """All three networks in a models folder."""
    return mask2former(root), depth_anything(root), dinov3(root)


def tokenizer(place, special=("<image>",), kind="PreTrainedTokenizerFast"):
    """A tokenizer of whole words over the captioners' question, saved as the hub has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from models.modalities.published.captions import QUESTION, SYSTEM

    words = [*special, "<unk>", "</s>", "a", "red", "boat", ".", "!", "blur"]
    pre = pre_tokenizers.Whitespace()
    for word, _ in pre.pre_tokenize_str(f"{SYSTEM} USER: ASSISTANT: {QUESTION}"):
        if word not in words:
            words.append(word)
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", additional_special_tokens=list(special)
    )
    fast.save_pretrained(place)
    return fast


def llava(root):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    place = folder(root, "llava")
    words = tokenizer(place)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    model = randomise(LlavaForConditionalGeneration(config), scale=1.0)
    model.save_pretrained(place)
    told = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
    (place / "preprocessor_config.json").write_text(json.dumps(told))
    return model


def blip(root):
    from transformers import BlipConfig, BlipForConditionalGeneration

    place = folder(root, "blip")
    words = tokenizer(place, special=("[PAD]", "[DEC]", "[SEP]"))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **size,
            "vocab_size": len(words),
            "encoder_hidden_size": 16,
            "bos_token_id": 1,
            "sep_token_id": 2,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    model = randomise(BlipForConditionalGeneration(config), scale=1.0)
    model.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}, "resample": 3}))
    return model
