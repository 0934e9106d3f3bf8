"""Captions: what the networks are asked, that one image has one caption, and what is cut from it."""

import importlib.util

import pytest
import torch

from models.catalogue import MissingWeightsError
from models.modalities.published import FixedCaption, captions, clean_caption, load_captioner
from tests.unit.models.published import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    tiny.llava(place)
    tiny.blip(place)
    return place


@pytest.fixture(scope="module")
def llava(root):
    return load_captioner("llava", root, dtype=torch.float32)


def photograph(seed=0):
    return tiny.image(40, 56, seed)[0].permute(1, 2, 0)


def asked(captioner, monkeypatch, seed=0):
    """What `generate` is called with; it answers with the words "a red boat . blur !"."""
    told = {}
    words = captioner.tokenizer.convert_tokens_to_ids(["a", "red", "boat", ".", "a", "blur", "!"])

    def generate(**arguments):
        told.update(arguments)
        return torch.cat([arguments["input_ids"], torch.tensor([words])], dim=1)

    monkeypatch.setattr(captioner.model, "generate", generate)
    return told, captioner.caption(photograph(seed))


def test_llava_is_asked_what_its_own_processor_would_ask(llava, monkeypatch):
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    told, _ = asked(llava, monkeypatch)
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        images,
        llava.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    levels = (photograph() * 255).round().byte().numpy()
    text = f"{captions.SYSTEM} USER: <image>\n{captions.QUESTION} ASSISTANT:"
    expected = processor(images=[levels], text=[text], return_tensors="pt")
    assert torch.equal(told["input_ids"], expected["input_ids"])
    assert (told["input_ids"] == llava.model.config.image_token_id).sum() == 4
    assert torch.allclose(told["pixel_values"], torch.as_tensor(expected["pixel_values"]), atol=1e-3)


def test_only_what_llava_wrote_is_told_and_cleaned(llava, monkeypatch):
    assert asked(llava, monkeypatch)[1] == "a red boat ."


def test_greedy_by_default_and_drawn_as_dit4sr_on_demand(root, llava, monkeypatch):
    told, _ = asked(llava, monkeypatch)
    assert not told["do_sample"] and told["max_new_tokens"] == 512
    drawn = load_captioner("llava", root, dtype=torch.float32, is_sampled=True)
    told, _ = asked(drawn, monkeypatch)
    assert (told["do_sample"], told["temperature"], told["top_p"]) == (True, 0.2, 0.7)


@pytest.mark.parametrize("kind", ["llava", "blip"])
def test_a_network_writes_the_same_each_time(root, kind, monkeypatch):
    monkeypatch.setattr(captions, "MAX_NEW_TOKENS", 6)
    captioner = load_captioner(kind, root, dtype=torch.float32)
    told = captioner.caption(photograph())
    assert told == captioner.caption(photograph())
    assert isinstance(told, str)


def test_blip_equals_its_own_generation(root):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    captioner = load_captioner("blip", root, dtype=torch.float32)
    levels = (photograph() * 255).round().byte().numpy()
    pixels = BlipImageProcessorPil(size={"height": 32, "width": 32})(images=[levels], return_tensors="pt")
    written = captioner.model.generate(pixel_values=pixels["pixel_values"], max_new_tokens=40, do_sample=False)
    expected = clean_caption(captioner.tokenizer.decode(written[0], skip_special_tokens=True))
    assert expected and captioner.caption(photograph()) == expected


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A red boat. The background is Blurred. A man!", "A red boat. A man!"),
        ("The focal point is a cat? Grass.", "Grass."),
        ("A dense forest.", ""),
        ("  A boat", "A boat"),
        ("", ""),
    ],
)
def test_sentences_about_focus_and_blur_are_cut(text, kept):
    assert clean_caption(text) == kept


def test_none_and_a_given_prompt_need_no_weights(tmp_path):
    assert load_captioner("none", tmp_path).caption(photograph()) == ""
    assert FixedCaption("a boat").caption(photograph()) == "a boat"


def test_what_is_wrong_is_said(tmp_path, root, monkeypatch):
    with pytest.raises(MissingWeightsError, match="m3esr models pull blip"):
        load_captioner("blip", tmp_path)
    with pytest.raises(ValueError, match="'gpt'"):
        load_captioner("gpt", tmp_path)
    with pytest.raises(ValueError, match="8 or 4 bit, not 3"):
        load_captioner("llava", root, bits=3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'm3esr\\[quantised\\]'"):
        load_captioner("llava", root, bits=8)
