"""What can be evaluated: our profiles; peers that are ONNX, TensorFlow or PyTorch files; folders of finished images."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluation.data import to_bytes, to_float
from evaluation.errors import EvaluationError
from evaluation.scoring import file_sha256
from evaluation.tensorflow_graph import rename_block_size
from models.backbones.options import BackboneOptions
from models.pipeline import WEIGHTS, Upscaler
from models.requests import Preset, UpscaleOptions

SCALE = 4
PROFILES = ("compact", "quality", "fidelity")
KINDS = {".onnx": "onnx", ".pb": "tensorflow", ".pth": "torch", ".safetensors": "torch"}
HOW = "a method is bicubic, a profile (compact, compact@fast), NAME=FILE (.onnx .pb .pth) or NAME=FOLDER of outputs"
Upscale = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # LR (H, W, 3) -> SR (4H, 4W, 3)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a profile runs. dtype: of `compact`; backbone: of `quality` and `fidelity`."""

    device: str = "cpu"
    dtype: str = "fp32"
    backbone: BackboneOptions = field(default_factory=BackboneOptions)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of a table. name: also its folder. kind: bicubic, profile, folder, or one of KINDS.

    path: of a peer's file, or of a profile's checkpoint folder where it is not the one that comes with it.
    """

    name: str
    kind: str
    path: Path | None = None
    profile: str = ""
    options: UpscaleOptions = field(default_factory=UpscaleOptions)
    machine: Machine = Machine()

    def identity(self) -> str:
        """Changes with whatever changes the pictures, so that those of two runs are never mixed."""
        parts = [self.kind, self.profile, repr(self.options), repr(self.machine)]
        if self.kind == "profile":
            folder = self.path or WEIGHTS / self.profile
            files = [path for path in sorted(folder.glob("*")) if path.is_file()] if folder.is_dir() else []
            parts += [path.name + file_sha256(path) for path in files if path.suffix in (".safetensors", ".json")]
        elif self.path is not None:
            parts.append(file_sha256(self.path))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def parse_method(text: str, machine: Machine = Machine()) -> Method:
    """A method from the command line. Raises EvaluationError, which says what there is."""
    name, separator, place = text.partition("=")
    if not separator:
        name, _, preset = text.partition("@")
        if name in PROFILES:
            if preset and preset not in get_args(Preset):
                raise EvaluationError(f"'{text}': no preset '{preset}'; there are {', '.join(get_args(Preset))}")
            options = UpscaleOptions(preset=preset) if preset else UpscaleOptions()
            return profile_method(text, name, options, machine)
        if text == "bicubic":
            return Method(name="bicubic", kind="bicubic")
        place = text.removeprefix("onnx:")
        name = Path(place).stem
    path = Path(place)
    if not re.fullmatch(r"[\w.@+ -]*\w[\w.@+ -]*", name):
        raise EvaluationError(f"'{name}' cannot name a method: use letters, digits and . _ - + @")
    if path.is_dir():
        return Method(name=name, kind="folder", path=path)
    if not path.is_file():
        raise EvaluationError(f"'{text}': no file or folder {path}; {HOW}")
    if path.suffix not in KINDS:
        raise EvaluationError(f"'{text}': {path.name} is none of {' '.join(KINDS)}; {HOW}")
    return Method(name=name, kind=KINDS[path.suffix], path=path)


def profile_method(
    name: str, profile: str, options: UpscaleOptions, machine: Machine, checkpoint: Path | None = None
) -> Method:
    """One of our profiles as a method. Raises EvaluationError on a preset that it has not."""
    if options.preset == "fast" and options.num_steps is None and profile != "compact":
        raise EvaluationError(f"'{profile}' has no preset fast; 'compact' has")
    if profile == "compact" and machine.dtype == "auto":
        # pictures are kept and compared, and the probe might choose differently in the next run
        machine = replace(machine, dtype="fp32")
    return Method(name=name, kind="profile", path=checkpoint, profile=profile, options=options, machine=machine)


def load_method(method: Method) -> Upscale:
    """The method, ready to run. Raises EvaluationError when a file is not what its suffix says, or a package lacks."""
    if method.kind == "bicubic":
        return upscale_bicubic
    if method.kind == "profile":
        return load_profile(method)
    assert method.path is not None
    loaders = {"onnx": load_onnx, "tensorflow": load_tensorflow, "torch": load_torch}
    return loaders[method.kind](method.path)


def upscale_bicubic(lr_image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = lr_image.shape[:2]
    return np.asarray(Image.fromarray(lr_image).resize((SCALE * width, SCALE * height), Image.Resampling.BICUBIC))


def load_profile(method: Method) -> Upscale:
    try:
        machine = method.machine
        upscaler = Upscaler.load(method.profile, machine.device, method.path, machine.dtype, machine.backbone)
    except (ValueError, OSError) as error:
        raise EvaluationError(str(error)) from error
    options = replace(method.options, scale=float(SCALE))
    return lambda lr_image: to_bytes(upscaler.upscale(to_float(lr_image), options).sr_image)


def load_onnx(path: Path) -> Upscale:
    """A network from RGB (1, 3, h, w) in [0, 1] to the same 4 times larger, on as many threads as torch has."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise EvaluationError("ONNX peers need onnxruntime: pip install 'm3esr[evaluation]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base but Exception
        raise EvaluationError(f"{path} cannot be loaded by onnxruntime: {error}") from error
    name = session.get_inputs()[0].name

    def upscale(lr_image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        feed = to_float(lr_image).transpose(2, 0, 1)[None]
        sr_image = np.asarray(session.run(None, {name: feed})[0])
        if sr_image.ndim != 4 or sr_image.shape[:2] != (1, 3):
            raise EvaluationError(f"{path} answers {sr_image.shape}; expected RGB (1, 3, H, W)")
        return to_bytes(sr_image[0].transpose(1, 2, 0))

    return upscale


def load_tensorflow(path: Path) -> Upscale:
    """A luma network of OpenCV's dnn_superres, as FSRCNN: Y through the network, Cb and Cr by bicubic."""
    import cv2

    # OpenCV 5's new engine cannot read such files and says so at length; OpenCV 4 has only the classic one
    classic = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    try:
        graph = np.frombuffer(rename_block_size(path.read_bytes()), np.uint8)
        network = cv2.dnn.readNetFromTensorflow(graph, **classic)
    except (cv2.error, ValueError) as error:
        raise EvaluationError(f"{path} cannot be loaded by OpenCV: {error}") from error

    def upscale(lr_image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        channels = cv2.cvtColor(lr_image, cv2.COLOR_RGB2YCrCb)
        network.setInput(cv2.dnn.blobFromImage(channels[..., 0], 1 / 255))
        y = np.asarray(network.forward())[0, 0]
        size = (y.shape[1], y.shape[0])
        colour = [cv2.resize(channels[..., k], size, interpolation=cv2.INTER_CUBIC) for k in (1, 2)]
        return np.asarray(cv2.cvtColor(np.dstack([to_bytes(y), *colour]), cv2.COLOR_YCrCb2RGB))

    return upscale


def load_torch(path: Path) -> Upscale:
    """Real-ESRGAN's and BSRGAN's published networks, the whole image at once, as their authors do by default."""
    from models.routing.published import load_super_resolver

    try:
        network = load_super_resolver(path)
    except (ValueError, OSError) as error:
        raise EvaluationError(str(error)) from error

    def upscale(lr_image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        sr_image = network(torch.from_numpy(to_float(lr_image)).permute(2, 0, 1)[None])
        return to_bytes(sr_image[0].permute(1, 2, 0).numpy())

    return upscale
