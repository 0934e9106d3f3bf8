"""What two public networks see in an HR photograph, on the token grid.

Teachers: MobileNetV2 (ImageNet) and DeepLabV3-MobileNetV2 (Pascal VOC), both Apache-2.0 TFLite files.
Dimension key
beside the package's: R raw teacher channels, T teacher tokens per side (T = HR side / 16 = 32).
"""

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

TOKENS = 32  # per side of a photograph: one for 16 HR pixels
MOBILENET = "mobilenet_v2_1.0_224_quant.tflite"
DEEPLAB = "deeplabv3_mnv2_pascal_quant.tflite"
# tensor numbers inside the two files: block outputs at stride 16 (and 32 for the deep MobileNet block)
MOBILENET_LAYERS = (119, 140, 166)  # 64, 96 (stride 16) and 320 channels (stride 32)
DEEPLAB_LAYERS = (144, 180)  # 96 and 256 channels (stride 16)
DEEPLAB_LOGITS, MOBILENET_LOGITS = 182, 171
RAW_GROUPS = (64, 96, 320, 96, 256)
RAW_CHANNELS = sum(RAW_GROUPS)


@dataclass(frozen=True)
class TeacherView:
    """One HR photograph as the teachers see it; arrays are (T, T, channels) float32."""

    features: np.ndarray  # (T, T, R) in the units of the quantised networks
    voc_logits: np.ndarray  # (T, T, 21)
    imagenet_logits: np.ndarray  # (1001,) mean over the windows of the classifier


class LiteTeacher:
    """A TFLite network that keeps its intermediate tensors, at a free input size.

    side: input side in pixels. It must be 16 k + 1: then every stride-2 layer pads evenly and the feature
    of cell i is
    centred on pixel 16 i exactly (with even sides TFLite pads on one side only and features drift by half
    a token).
    """

    def __init__(self, path: Path, side: int) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        content = path.read_bytes()
        if path.name == MOBILENET:
            content = _free_classifier_windows(content, side)
        with warnings.catch_warnings():
            # it warns that keeping intermediate tensors costs memory: intended
            warnings.simplefilter("ignore")
            self._net = Interpreter(
                model_content=content,
                num_threads=1,
                experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
        self._net.resize_tensor_input(0, [1, side, side, 3])
        self._net.allocate_tensors()
        self._quantization = {d["index"]: d["quantization"] for d in self._net.get_tensor_details()}

    def run(self, image: np.ndarray, layers: tuple[int, ...]) -> list[np.ndarray]:
        """image (side, side, 3) uint8 -> the named tensors without their batch axis, float32, dequantised."""
        self._net.set_tensor(0, image[None])
        self._net.invoke()
        outputs = []
        for layer in layers:
            step, zero = self._quantization[layer]
            outputs.append((self._net.get_tensor(layer)[0].astype(np.float32) - zero) * step)
        return outputs


def _free_classifier_windows(content: bytes, side: int) -> bytes:
    """The classifier ends in a reshape to (1, 1001); at larger inputs it has k x k windows, so the reshape
    must say so.
    """
    windows = ((side - 1) // 32 + 1 - 6) ** 2
    for length in (8, 2):  # the reshape's shape as a tensor (8 bytes) and as an option (2 entries)
        old = struct.pack("<Iii", length, 1, 1001)
        content = content.replace(old, struct.pack("<Iii", length, windows, 1001))
    return content


def stem_weights(nets: Path) -> dict[str, torch.Tensor]:
    """MobileNetV2's first ten blocks, dequantised, under the names of
    models.modalities.perception.MobileStem.
    """
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(str(nets / MOBILENET))
    net.allocate_tensors()
    details = {d["index"]: d for d in net.get_tensor_details()}

    def read(index: int) -> torch.Tensor:
        step, zero = details[index]["quantization"]
        return torch.from_numpy((net.get_tensor(index).astype(np.float32) - zero) * step)

    names = ["first", "fine.spatial", "fine.project"]
    names += [f"coarse.{k}.{part}" for k in range(9) for part in ("expand", "spatial", "project")]
    weights = {}
    layers = [op for op in net._get_ops_details() if "CONV_2D" in op["op_name"]]
    # not strict: the file holds seven blocks and the classifier more
    for name, layer in zip(names, layers, strict=False):
        _, kernel, bias = layer["inputs"]
        # (out, k, k, in), or (1, k, k, channels) for a depthwise one -> torch's (out, in or 1, k, k)
        order = (3, 0, 1, 2) if layer["op_name"].startswith("DEPTHWISE") else (0, 3, 1, 2)
        weights[f"{name}.weight"] = read(kernel).permute(order).contiguous()
        weights[f"{name}.bias"] = read(bias)
    return weights


class Teachers:
    """Both teachers on 512 x 512 photographs.

    Each photograph is continued by reflection before a network sees it: with zero padding, the outermost
    tokens form
    segments of their own ("image border") that no student should learn.
    """

    side = 512
    margin = 64  # reflected pixels on each side

    def __init__(self, nets: Path) -> None:
        self._mobilenet = LiteTeacher(nets / MOBILENET, self.side + 2 * self.margin + 1)
        # its size is fixed: the photograph is shrunk to 384 + margins
        self._deeplab = LiteTeacher(nets / DEEPLAB, 513)

    def view(self, hr_image: np.ndarray) -> TeacherView:
        """hr_image (512, 512, 3) uint8 -> TeacherView on the 32 x 32 token grid."""
        if hr_image.shape != (self.side, self.side, 3):
            raise ValueError(f"teachers take {self.side} x {self.side} RGB, not {hr_image.shape}")
        small = cv2.resize(hr_image, (384, 384), interpolation=cv2.INTER_AREA)
        *mobile, classes = self._mobilenet.run(self._continue(hr_image), (*MOBILENET_LAYERS, MOBILENET_LOGITS))
        *deep, voc = self._deeplab.run(self._continue(small), (*DEEPLAB_LAYERS, DEEPLAB_LOGITS))
        grids = [to_tokens(x, self.side, self.margin) for x in mobile]
        grids += [to_tokens(x, 384, self.margin) for x in (*deep, voc)]
        return TeacherView(np.concatenate(grids[:-1], axis=-1), grids[-1], classes.mean(axis=(0, 1)))

    def _continue(self, image: np.ndarray) -> np.ndarray:
        """Reflect the margins in, plus one pixel below and to the right (sides of 16 k + 1)."""
        around = (self.margin, self.margin + 1)
        return np.pad(image, (around, around, (0, 0)), mode="reflect")


def to_tokens(cells: np.ndarray, side: int, margin: int = 64) -> np.ndarray:
    """cells (n, n, C), spaced evenly from the continued photograph's first pixel to its last -> (32, 32,
    C) at tokens.

    side: the photograph's own side in the network's pixels. Linear interpolation.
    """
    step = (side + 2 * margin) / (cells.shape[0] - 1)  # pixels between cells
    centres = (margin + (np.arange(TOKENS) + 0.5) * side / TOKENS) / step
    low = np.floor(centres).astype(int)
    part = (centres - low).astype(np.float32)
    rows = cells[low] * (1 - part)[:, None, None] + cells[low + 1] * part[:, None, None]
    return rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
