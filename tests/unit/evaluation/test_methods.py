"""What can be named as a method, and that each runs as it says."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.methods import Machine, Method, load_method, parse_method
from evaluation.tensorflow_graph import encode, fields, rename_block_size
from models.backbones.options import BackboneOptions
from models.requests import UpscaleOptions
from models.routing.realesrgan import SRVGGNetCompact, SRVGGNetCompactConfig

PEER = Path(__file__).resolve().parents[2] / "fixtures" / "peers" / "nearest_x4.onnx"
LR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def test_names_of_methods(tmp_path):
    assert parse_method("bicubic").kind == "bicubic"
    fast = parse_method("compact@fast")
    assert (fast.kind, fast.profile, fast.options.preset) == ("profile", "compact", "fast")
    assert (parse_method("quality").name, parse_method("quality").options) == ("quality", UpscaleOptions())
    assert parse_method(f"peer={PEER}") == Method(name="peer", kind="onnx", path=PEER)
    assert parse_method(f"onnx:{PEER}").name == parse_method(str(PEER)).name == "nearest_x4"
    assert parse_method(f"theirs={tmp_path}").kind == "folder"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("compact@quick", "no preset 'quick'; there are fast, balanced, best"),
        ("nothing", "no file or folder nothing; a method is bicubic"),
        ("a/b=.", "'a/b' cannot name a method"),
        ("..=.", "cannot name a method"),
        ("x=READ", "is none of .onnx .pb .pth"),
    ],
)
def test_what_is_no_method_is_told_with_what_is(tmp_path, text, words):
    other = tmp_path / "notes.txt"
    other.touch()
    with pytest.raises(EvaluationError, match=words):
        parse_method(text.replace("READ", str(other)))


def test_bicubic_is_pillows():
    expected = np.asarray(Image.fromarray(LR).resize((20, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(load_method(parse_method("bicubic"))(LR), expected)


def test_an_onnx_network_is_fed_rgb_and_answers_four_times_larger():
    assert np.array_equal(load_method(parse_method(str(PEER)))(LR), LR.repeat(4, 0).repeat(4, 1))


def test_a_pth_is_a_published_super_resolver(tmp_path):
    torch.manual_seed(0)
    network = SRVGGNetCompact(SRVGGNetCompactConfig(num_feat=4, num_conv=1)).eval()
    path = tmp_path / "srvgg.pth"
    torch.save({"params": network.state_dict()}, path)
    sr_image = load_method(parse_method(str(path)))(LR)
    with torch.inference_mode():
        expected = network(torch.from_numpy(LR).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).clamp(0, 1)
    assert np.array_equal(sr_image, (expected * 255).round().byte().numpy())


@pytest.mark.parametrize("suffix", [".onnx", ".pb", ".pth"])
def test_a_broken_file_is_one_clear_error(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"\x0a\xffnot a network")
    with pytest.raises(EvaluationError, match=f"broken{suffix}"):
        load_method(parse_method(str(path)))


def test_a_profile_without_weights_says_so(tmp_path):
    machine = Machine(backbone=BackboneOptions(models_dir=tmp_path / "nowhere"))
    with pytest.raises(EvaluationError, match="m3esr models pull quality"):
        load_method(parse_method("quality", machine))


def test_only_compact_is_fast_and_its_precision_does_not_hang_on_a_probe():
    with pytest.raises(EvaluationError, match="'quality' has no preset fast; 'compact' has"):
        parse_method("quality@fast")
    auto = Machine(dtype="auto")
    assert parse_method("compact", auto).machine.dtype == "fp32"
    assert parse_method("quality", auto).machine.dtype == "auto"


def test_the_identity_follows_options_precision_and_files(tmp_path):
    method = Method(name="a", kind="profile", profile="compact", path=tmp_path)
    (tmp_path / "compact.safetensors").write_bytes(b"1")
    known = method.identity()
    assert replace(method, name="b").identity() == known
    assert replace(method, machine=Machine(dtype="bf16")).identity() != known
    assert replace(method, options=UpscaleOptions(seed=1)).identity() != known
    (tmp_path / "compact.safetensors").write_bytes(b"2")
    assert method.identity() != known


def depth_to_space_graph() -> bytes:
    """x * 1 -> DepthToSpace(2), as TensorFlow writes it: placeholder (?, ?, ?, 4)."""

    def attribute(key: bytes, value: bytes) -> bytes:
        return encode(5, encode(1, key) + encode(2, value))

    number = b"\x18\x02"  # AttrValue.i = 2
    float32 = b"\x30\x01"  # AttrValue.type = DT_FLOAT
    placeholder = encode(1, b"x") + encode(2, b"Placeholder") + attribute(b"dtype", float32)
    shuffle = encode(1, b"y") + encode(2, b"DepthToSpace") + encode(3, b"x")
    shuffle += (
        attribute(b"T", float32) + attribute(b"block_size", number) + attribute(b"data_format", encode(2, b"NHWC"))
    )
    return encode(1, placeholder) + encode(1, shuffle)


def test_opencv_reads_depth_to_space_once_its_attribute_is_renamed():
    graph = depth_to_space_graph()
    renamed = rename_block_size(graph)
    assert len(renamed) == len(graph) - 1 and b"blocksize" in renamed
    classic = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    network = cv2.dnn.readNetFromTensorflow(np.frombuffer(renamed, np.uint8), **classic)
    network.setInput(np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1))
    assert network.forward().reshape(2, 2).tolist() == [[0, 1], [2, 3]]


def test_other_graphs_pass_unchanged():
    node = encode(1, encode(1, b"a" * 200) + encode(2, b"Relu") + encode(5, encode(1, b"block_size")))
    graph = node + b"\x22\x00\x08\x96\x01\x151234\x1912345678"
    assert rename_block_size(graph) == graph
    assert [number for number, _, _ in fields(graph)] == [1, 4, 1, 2, 3]
