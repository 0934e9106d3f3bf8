"""Tensors out of old pickled checkpoints, without running what else is pickled in them."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor


class _Inert:
    """Stands in for a class of a training framework: takes whatever it is given and does nothing with it."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> "_Inert":
        return self


# What tensors and plain containers are rebuilt from; every other name becomes _Inert.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
}


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_storage = module == "torch" and name.endswith("Storage")
        if (module, name) in _ALLOWED or is_storage:
            return super().find_class(module, name)
        return _Inert


def _load(file: IO[bytes], **options: Any) -> Any:
    return _TensorsOnly(file, **options).load()


# torch.load reads the old file format through load, the new one through Unpickler
_TENSORS_ONLY = SimpleNamespace(Unpickler=_TensorsOnly, load=_load, __name__="tensors_only")


def load_pickled_state(path: Path, *keys: str) -> dict[str, Tensor]:
    """The state dict of a .ckpt or .pth file, on the CPU.

    keys: where it may lie inside the file, the first that is there counts ("params_ema", "params", "state_dict");
    without any the file itself is the state dict. Files of old training frameworks name their own classes, which
    torch.load(weights_only=True) refuses; here such an object is dropped and nothing of it runs.
    Raises ValueError when the file holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", pickle_module=_TENSORS_ONLY, weights_only=False)
    except (pickle.UnpicklingError, EOFError, RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of torch: {error}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in keys if key in content), content)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no state dict")
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors; expected them under {', '.join(keys) or 'its top level'}")
    return state
