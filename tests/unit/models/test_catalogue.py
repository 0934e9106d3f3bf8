"""The catalogue of public weights: what is chosen of a listing, what counts as there, and one set of licence facts."""

import json
import subprocess
import sys

import pytest

import jobs
from models.catalogue import GROUPS, PROFILES, choose_files, find_sources, is_there, matches_sum, missing
from models.sources import SOURCES, Part

PART = Part("text_encoder", 1)


def write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("{}")


def test_every_name_leads_to_a_source():
    for name in (*PROFILES, *GROUPS, *SOURCES):
        assert all(source.num_bytes > 0 for source in find_sources([name]))
    assert [source.name for source in find_sources(["quality", "dit4sr-r1"])] == ["sd35", "dit4sr-r1"]
    with pytest.raises(KeyError):
        find_sources(["compakt"])


def test_the_profiles_are_those_of_the_service_with_the_same_licences():
    assert set(PROFILES) == set(jobs.PROFILES)
    for name in set(PROFILES) - {"compact"}:
        told = {licence.url: licence for licence in jobs.PROFILES[name].licences}
        needed = {source.terms.url: source.terms for source in find_sources([name])}
        assert set(needed) <= set(told), name
        for url in set(told):
            terms = next(source.terms for source in SOURCES.values() if source.terms.url == url)
            assert (terms.name, terms.is_commercial_use_allowed) == (
                told[url].name,
                told[url].is_commercial_use_allowed,
            )


def test_a_source_that_is_not_on_the_hub_says_where_each_file_is():
    for source in SOURCES.values():
        urls = [part.url for part in source.parts if part.url]
        assert len(urls) in (0, len(source.parts)), source.name
        assert all(url.startswith("https://") for url in urls)


def test_one_set_of_weights_is_chosen():
    listed = [
        "README.md",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/deeper/config.json",
        "text_encoder_2/config.json",
    ]
    assert choose_files(PART, listed) == ["text_encoder/config.json", "text_encoder/model.safetensors"]
    assert choose_files(PART, [path for path in listed if "model.s" not in path]) == [
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
    ]


def test_shards_come_with_their_index_and_without_another_variant():
    listed = [
        f"{name}{tail}"
        for name in ("model", "model.fp16")
        for tail in ("-00001-of-00002.safetensors", "-00002-of-00002.safetensors")
    ]
    listed += ["config.json", "model.safetensors.index.json", "model.safetensors.index.fp16.json", "training_args.bin"]
    assert choose_files(Part("", 1), listed) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_repository_with_pickles_only_gives_those_and_one_without_weights_nothing():
    assert choose_files(Part("", 1), ["config.json", "pytorch_model.bin"]) == ["config.json", "pytorch_model.bin"]
    assert choose_files(Part("", 1), ["config.json", "training_args.bin"]) == []


def test_a_model_is_there_when_it_can_be_loaded(tmp_path):
    assert not is_there(tmp_path, PART)
    write(tmp_path, "text_encoder/config.json")
    assert not is_there(tmp_path, PART)
    write(tmp_path, "text_encoder/model-00001-of-00002.safetensors")
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "text_encoder/model.safetensors.index.json").write_text(json.dumps(shards))
    assert not is_there(tmp_path, PART)
    write(tmp_path, "text_encoder/model-00002-of-00002.safetensors")
    assert is_there(tmp_path, PART)


def test_a_single_file_counts_for_shards(tmp_path):
    write(tmp_path, "text_encoder/config.json", "text_encoder/model.safetensors")
    assert is_there(tmp_path, PART)


def test_what_is_missing_is_told_by_its_place(tmp_path):
    assert missing(tmp_path, "compact") == []
    write(tmp_path, "acceptee/DiT4SR/dit4sr_r1/transformer/config.json")
    lacking = missing(tmp_path, "quality")
    assert "acceptee/DiT4SR/dit4sr_r1/transformer/diffusion_pytorch_model.safetensors" in lacking
    assert "acceptee/DiT4SR/dit4sr_r1/transformer/config.json" not in lacking
    assert "stabilityai/stable-diffusion-3.5-medium/vae" in lacking
    assert missing(tmp_path, "mask2former") == ["facebook/mask2former-swin-large-ade-semantic"]


def test_a_sum_known_by_its_ends_is_compared_by_them():
    assert matches_sum("ab...yz", "ab123yz") and not matches_sum("ab...yz", "ab123yx")
    assert matches_sum("ab", "ab") and not matches_sum("ab", "abc")


def test_the_catalogue_needs_no_torch():
    program = "import models.catalogue, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
