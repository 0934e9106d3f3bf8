"""Prompts are encoded as the stock SD3 pipeline encodes them, with and without T5."""

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from models.backbones.memory import Placement
from models.backbones.text import PromptEncoder
from tests.unit.models.published_tiny import DENOISER, TEXT_FEATURES, save_sd35

CPU = torch.device("cpu")
PROMPTS = ["a wooden bridge, 32k", "", "long " * 70 + "and the end is heard by t5 alone"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sd35(tmp_path_factory.mktemp("hub"))


def load(folder, **options):
    return PromptEncoder.load(folder, TEXT_FEATURES, torch.float32, Placement("none", CPU), **options)


def stock(folder, encoder):
    """diffusers' own pipeline around the same networks."""
    (clip_tokenizer, clip), (clip_tokenizer_2, clip_2) = encoder.clips
    t5_tokenizer, t5 = encoder.t5 or (None, None)
    transformer = SD3Transformer2DModel(**{k: v for k, v in DENOISER.items() if not k.startswith("_")})
    return StableDiffusion3Pipeline(
        transformer, None, None, clip, clip_tokenizer, clip_2, clip_tokenizer_2, t5, t5_tokenizer
    )


@pytest.mark.parametrize("use_t5", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_equal_the_stock_pipelines(folder, prompt, use_t5):
    encoder = load(folder, use_t5=use_t5)
    with torch.no_grad():
        expected, negative, pooled, negative_pooled = stock(folder, encoder).encode_prompt(
            prompt, None, None, negative_prompt="blurry", max_sequence_length=256
        )
        ours, ours_pooled = encoder.encode(["blurry", prompt])
    assert expected.shape == (1, 77 + 256, TEXT_FEATURES)
    torch.testing.assert_close(ours, torch.cat([negative, expected]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours_pooled, torch.cat([negative_pooled, pooled]), atol=1e-5, rtol=1e-5)


def test_t5_hears_what_clip_cuts_off(folder):
    encoder = load(folder)
    with torch.no_grad():
        one, _ = encoder.encode(["long " * 20 + "a"])
        two, _ = encoder.encode(["long " * 20 + "b"])
    assert torch.equal(one[:, :77], two[:, :77])
    assert not torch.equal(one[:, 77:], two[:, 77:])


def test_a_missing_weight_is_told_and_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_sd35(tmp_path)
    path = folder / "text_encoder_2" / "model.safetensors"
    state = load_file(path)
    del state["text_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"text_projection\.weight"):
        load(folder)


def test_absent_or_broken_folders_are_told(tmp_path):
    folder = save_sd35(tmp_path)
    (folder / "text_encoder_2" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="text_encoder_2 cannot be loaded"):
        load(folder)
    (folder / "text_encoder" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load(folder)
