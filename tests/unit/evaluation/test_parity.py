"""`python -m evaluation.parity` on the fixtures of every kind, sound, changed and broken."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from evaluation.parity.__main__ import find_kind, main

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
# fixture -> its kind, a tensor file to change and how many tensors are compared
CASES = {
    "parity_a": ("DiT4SR transformer", "outputs_r1", 26),
    "parity_c": ("DiT4SR transformer", "outputs_orig", 20),
    "parity_pipeline": ("DiT4SR sampling loop", "tensors", 38),
    "seesr": ("SeeSR", "outputs", 11),
    "rrdb": ("Real-ESRGAN", "tiling", 4),
    "srvgg": ("Real-ESRGAN", "outputs", 1),
    "colorfix": ("colour correction", "tensors", 4),
    "degradation": ("degradation", "tensors", 23),
}
INPUTS = ("image", "image_bgr_u8", "source", "source_u8", "target", "target_u8", "kernel21")


@pytest.mark.parametrize("name", CASES)
def test_every_fixture_is_known_by_its_files_and_within_the_tolerance(name, capsys):
    kind, _, num_tensors = CASES[name]
    assert main([str(FIXTURES / name)]) == 0
    told = capsys.readouterr().out
    assert f"({kind})" in told and f"{num_tensors} tensors, 0 too far" in told


@pytest.mark.parametrize("name", CASES)
def test_one_changed_number_is_found(name, tmp_path, capsys):
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    if name == "parity_pipeline":  # its transformer lies beside it
        shutil.copytree(FIXTURES / "parity_a", tmp_path / "a")
    path = folder / f"{CASES[name][1]}.safetensors"
    tensors = load_file(path)
    inputs = (*INPUTS, "lr_latent_raw", "noise", "pooled", "prompt_embeds")
    changed = next(key for key in sorted(tensors, reverse=True) if not key.endswith(inputs))
    flat = tensors[changed].view(-1)
    flat[len(flat) // 2] += 1 if tensors[changed].is_floating_point() else 2
    save_file(tensors, path)
    assert main([str(folder)]) == 1
    assert f"{changed}" in next(line for line in capsys.readouterr().out.splitlines() if "TOO FAR" in line)


def test_a_missing_tensor_of_ours_is_too_far(tmp_path, capsys):
    folder = tmp_path / "a"
    shutil.copytree(FIXTURES / "parity_a", folder)
    outputs = load_file(folder / "outputs_r1.safetensors")
    save_file(outputs | {"block9.image": outputs["block0.image"].clone()}, folder / "outputs_r1.safetensors")
    assert main([str(folder)]) == 1
    assert "inf  r1.block9.image" in capsys.readouterr().out


def test_folders_are_read_one_after_the_other(capsys):
    assert main([str(FIXTURES / "srvgg"), str(FIXTURES / "colorfix")]) == 0
    assert capsys.readouterr().out.count("0 too far") == 2


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_folder_that_is_not_known_is_one_line(make, tmp_path, capsys):
    make(tmp_path / "what")
    assert main([str(tmp_path / "what")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "what" in told.err


def test_a_broken_fixture_is_one_line(tmp_path, capsys):
    folder = tmp_path / "a"
    shutil.copytree(FIXTURES / "parity_a", folder)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    assert main([str(folder)]) == 2
    (folder / "config.json").write_text("{")
    assert main([str(folder)]) == 2
    (folder / "config.json").unlink()
    assert main([str(folder)]) == 2
    shutil.copytree(FIXTURES / "parity_pipeline", tmp_path / "alone" / "pipeline")
    assert main([str(tmp_path / "alone" / "pipeline")]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 4 and "has no transformer" in told.err


def test_the_kind_is_told_by_the_files():
    assert {name: find_kind(FIXTURES / name).name for name in CASES} == {
        name: kind for name, (kind, *_) in CASES.items()
    }
