"""The extractors on tiny random networks of the real classes, loaded from a models folder."""

import numpy as np
import pytest
import torch

from models.catalogue import MissingWeightsError
from models.modalities.edge import canny_edges
from models.modalities.published import PublishedConfig, PublishedExtractor
from models.modalities.published.dino import Dino, convert_timm
from models.modalities.published.palette import ADE20K_COLOURS
from models.modalities.published.segmentation import Segmentation
from tests.unit.models.published import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    tiny.extractors(place)
    return place


@pytest.fixture(scope="module")
def extractor(root):
    return PublishedExtractor.load(root)


def test_maps_are_pictures_and_features_a_grid(extractor):
    seen = tiny.image(64, 96)
    found = extractor.extract(seen)
    for name in ("segmentation", "depth", "edge"):
        assert found[name].shape == seen.shape
        assert found[name].min() >= 0 and found[name].max() <= 1
        assert found[name].std() > 0
    assert found["dino"].shape == (1, 128, 4, 6)
    assert set(extractor.extract(seen, ["edge"])) == {"edge"}


def test_segmentation_equals_the_official_post_processing(root, extractor):
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    network = extractor.networks["segmentation"]
    seen = torch.cat([tiny.image(64, 96, seed=1), tiny.image(64, 96, seed=2)])
    processor = Mask2FormerImageProcessorPil(size={"height": 384, "width": 384})
    with torch.inference_mode():
        outputs = network.model(pixel_values=network.preprocessing(seen))
    expected = torch.stack(processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)] * 2))
    found = network.classify(seen)
    assert len(found.unique()) > 2
    assert torch.equal(found, expected)
    colour = (network(seen)[1, :, 10, 20] * 255).round().int().tolist()
    assert tuple(colour) == ADE20K_COLOURS[found[1, 10, 20]]


def test_the_palette_has_a_colour_for_each_class():
    assert len(ADE20K_COLOURS) == 150
    assert ADE20K_COLOURS[0] == (120, 120, 120) and ADE20K_COLOURS[2] == (6, 230, 230)
    assert ADE20K_COLOURS[149] == (92, 0, 255)


def test_depth_equals_the_model_stretched_to_black_and_white(extractor):
    from PIL import Image
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    network, seen = extractor.networks["depth"], tiny.image(64, 96)
    processor = DPTImageProcessorPil.from_pretrained(network.model.name_or_path)
    levels = (seen[0] * 255).round().byte().permute(1, 2, 0).numpy()
    with torch.inference_mode():
        outputs = network.model(**processor(images=Image.fromarray(levels), return_tensors="pt"))
    depth = processor.post_process_depth_estimation(outputs, target_sizes=[(64, 96)])[0]["predicted_depth"]
    found = network(seen)
    assert found.min() == 0 and found.max() == 1
    assert torch.equal(found[0, 0], found[0, 2])
    expected = ((depth - depth.min()) / (depth.max() - depth.min())).numpy()
    assert np.abs(found[0, 0].numpy() - expected).max() < 1e-3


def test_edges_are_canny_with_the_configured_thresholds(root):
    seen = tiny.image(64, 96)
    extractor = PublishedExtractor.load(root, config=PublishedConfig(names=("edge",), low=30, high=60))
    found = extractor.extract(seen, ["edge"])["edge"]
    assert torch.equal(found, canny_edges(seen, 30, 60).expand(-1, 3, -1, -1))
    assert not torch.equal(found, canny_edges(seen).expand(-1, 3, -1, -1))


def test_dino_leaves_out_class_and_register_tokens(root, extractor):
    seen = tiny.image(64, 96)
    model = extractor.networks["dino"].model
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((seen.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        tokens = model(pixel_values=pixels).last_hidden_state
    assert tokens.shape[1] == 1 + 4 + 4 * 6
    found = extractor.extract(seen, ["dino"])["dino"]
    assert torch.allclose(found[0, :, 1, 2], tokens[0, 5 + 1 * 6 + 2], atol=1e-5)
    assert extractor.extract(tiny.image(50, 70), ["dino"])["dino"].shape == (1, 128, 3, 4)


@pytest.mark.parametrize("has_bias", [False, True])
def test_timms_copy_gives_the_same_features(tmp_path, has_bias):
    model = tiny.dinov3_timm(tmp_path, has_bias)
    config = PublishedConfig(names=("dino",))
    found = PublishedExtractor.load(tmp_path, config=config).extract(tiny.image(), ["dino"])["dino"]
    assert torch.allclose(found, Dino(model)(tiny.image()), atol=1e-5)


def test_a_timm_file_that_does_not_fit_is_refused(tmp_path):
    model = tiny.dinov3()
    layers = "model.layer." if hasattr(model, "model") else "layer."
    state = convert_timm(tiny.timm_state(model), layers)
    assert set(state) == set(model.state_dict()) - {"embeddings.mask_token"}
    tiny.dinov3_timm(tmp_path)
    (tiny.folder(tmp_path, "dinov3-timm") / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(ValueError, match="resnet50"):
        PublishedExtractor.load(tmp_path, config=PublishedConfig(names=("dino",)))


def test_what_is_missing_names_the_command(tmp_path):
    with pytest.raises(MissingWeightsError, match="m3esr models pull mask2former"):
        PublishedExtractor.load(tmp_path)
    tiny.dinov3_timm(tmp_path)
    with pytest.raises(MissingWeightsError, match="models pull dinov3"):
        PublishedExtractor.load(tmp_path, config=PublishedConfig(names=("dino",), dino_sources=("dinov3",)))


def test_only_what_was_loaded_is_extracted(root):
    extractor = PublishedExtractor.load(root, config=PublishedConfig(names=("depth",)))
    with pytest.raises(ValueError, match="edge"):
        extractor.extract(tiny.image(), ["edge"])
    with pytest.raises(ValueError, match="smell"):
        PublishedConfig(names=("smell",))


def test_the_extractors_see_what_the_configuration_says():
    upscaled, coarse = tiny.image(seed=1), tiny.image(seed=2)
    for sees, expected in (("upscaled", upscaled), ("coarse", coarse)):
        extractor = PublishedExtractor(PublishedConfig(sees=sees), {})
        assert extractor.choose(upscaled, coarse) is expected
        assert extractor.choose(upscaled, None) is upscaled


def test_half_precision_and_the_dtype_of_the_image(root):
    extractor = PublishedExtractor.load(root, dtype=torch.bfloat16).to("cpu")
    found = extractor.extract(tiny.image().bfloat16())
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert all(value.isfinite().all() for value in found.values())


def test_a_hundred_classes_are_resized_in_parts(monkeypatch):
    from models.modalities.published import segmentation

    score = torch.rand(1, 37, 9, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(score, size=(20, 30), mode="bilinear").argmax(1)
    assert torch.equal(segmentation._argmax_resized(score, (20, 30)), expected)
    assert Segmentation  # the class that uses it
