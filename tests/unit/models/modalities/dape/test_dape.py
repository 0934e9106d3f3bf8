"""DAPE gives what RAM's formulas give for weights under the published names, LoRA included."""

import pytest
import torch
import torch.nn.functional as F

from models.modalities.dape.extractor import TAGS_FILE, THRESHOLDS_FILE, PromptExtractor
from models.modalities.dape.network import Tagger, TaggerConfig, build_encoder
from models.modalities.dape.weights import LORA_FILE, RAM_FILE, load_tagger, merge_lora
from tests.unit.models.modalities.dape import reference
from tests.unit.models.seesr_tiny import TAGGER, TAGS, lora_state, ram_state, save_tagger


def with_lora(state, lora):
    """RAM's weights with the LoRA added row by row: an eighth of B A, for the parts that have one."""
    state = dict(state)
    for name, value in state.items():
        a, b = (lora.get(name.removesuffix(".weight") + f".lora_{part}") for part in "AB")
        if a is None:
            continue
        value = value.clone()
        if name.endswith(".attn.qkv.weight"):
            width = value.shape[1]
            value[:width] += b[:width] @ a[:8] / 8  # queries
            value[2 * width :] += b[width:] @ a[8:] / 8  # values
        else:
            value += b @ a / 8
        state[name] = value
    return state


@pytest.fixture
def root(tmp_path):
    save_tagger(tmp_path)
    return tmp_path


@pytest.fixture
def expected_state():
    return with_lora(ram_state(TAGGER), lora_state(TAGGER))


def expected_tokens(state, lr_image):
    pixels = F.interpolate(lr_image, size=(64, 64), mode="bilinear", align_corners=False)[0]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / deviation[:, None, None]
    encoder = {name.removeprefix("visual_encoder."): value for name, value in state.items()}
    features = reference.swin(encoder, pixels, TAGGER)
    return reference.linear(state, "image_proj", torch.cat([features.mean(0, keepdim=True), features]))


def test_image_tokens_and_scores_follow_the_published_names(root, expected_state):
    lr_image = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0))
    tagger = load_tagger(root, TAGGER)
    tokens = tagger.image_tokens(lr_image)
    assert tokens.shape == (1, 1 + 8 * 8, 512)
    expected = expected_tokens(expected_state, lr_image)
    assert (tokens[0] - expected).abs().max() < 1e-4 * expected.abs().max()
    scores = tagger.scores(tokens)[0]
    assert (scores - reference.scores(expected_state, expected, TAGGER)).abs().max() < 1e-5
    assert scores.std() > 1e-3


def test_the_full_network_has_145_tokens_and_the_published_size():
    config = TaggerConfig()
    with torch.device("meta"):
        tagger = Tagger(build_encoder(config), config)
    assert 1 + (config.image_size // 32) ** 2 == 145
    # Swin-L at 384 px with window 12 is listed with 196.74 M; its classifier of 1000 classes is not part of RAM
    num_parameters = sum(p.numel() for p in tagger.encoder.parameters()) + 1000 * 1536 + 1000
    assert round(num_parameters / 1e6, 2) == 196.74
    assert tagger.label_embed.shape == (4585, 512)


def test_the_lora_file_has_the_published_size():
    """7.19 MB, as the hub lists it: the tensors of the parts read here and of the decoders that are left out."""
    lora = sum(value.numel() for value in lora_state(TaggerConfig()).values()) - 2 * 2 * 8
    per_layer = 4 * 8 * 768  # self-attention, queries and keys
    tag_encoder = 12 * (per_layer + 2 * 8 * 768 + 8 * (512 + 768))
    text_decoder = 12 * 2 * per_layer  # its cross-attention reads features of 768
    assert 7_100_000 < 4 * (lora + tag_encoder + text_decoder) < 7_190_000


def test_tags_above_their_threshold_are_named_in_the_lists_order(root):
    scores = load_tagger(root, TAGGER).scores(load_tagger(root, TAGGER).image_tokens(torch.zeros(1, 3, 8, 8)))[0]
    middle = float(scores.median())
    (root / THRESHOLDS_FILE).write_text(f"{middle}\n" * len(TAGS))
    prompt = PromptExtractor.load(root, TAGGER).read(torch.zeros(1, 3, 8, 8))
    assert prompt.tags == tuple(tag for tag, score in zip(TAGS, scores.tolist(), strict=True) if score > middle)
    assert 0 < len(prompt.tags) < len(TAGS)


def test_a_lora_is_needed_and_must_fit():
    state = ram_state(TAGGER)
    with pytest.raises(ValueError, match="holds no LoRA"):
        merge_lora(state, {})
    wrong = lora_state(TAGGER)
    name = "tagging_head.encoder.layer.0.crossattention.self.key.lora_B"
    wrong[name] = wrong[name][:4]
    with pytest.raises(ValueError, match=r"the LoRA of tagging_head.*self\.key\.weight"):
        merge_lora(state, wrong)


def test_missing_and_foreign_files_are_told(root):
    with pytest.raises(ValueError, match="named"):
        (root / TAGS_FILE).write_text("cat\n")
        PromptExtractor.load(root, TAGGER)
    (root / TAGS_FILE).unlink()
    with pytest.raises(ValueError, match=r"ram_tag_list\.txt is missing"):
        PromptExtractor.load(root, TAGGER)
    state = ram_state(TAGGER)
    for lost, message in (
        ("visual_encoder.layers.1.blocks.0.attn.proj.weight", "image encoder"),
        ("image_proj.weight", "lacks image_proj"),
        ("tagging_head.encoder.layer.1.crossattention.self.query.bias", "does not fit"),
    ):
        torch.save({"model": {name: value for name, value in state.items() if name != lost}}, root / RAM_FILE)
        with pytest.raises(ValueError, match=message):
            load_tagger(root, TAGGER)
    torch.save({"model": {"something.else": torch.zeros(1)}}, root / RAM_FILE)
    with pytest.raises(ValueError, match="not the weights of RAM"):
        load_tagger(root, TAGGER)
    (root / LORA_FILE).unlink()
    with pytest.raises(ValueError, match=r"DAPE\.pth is missing"):
        load_tagger(root, TAGGER)
