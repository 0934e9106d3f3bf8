"""A pickle module for torch.load: tensors and plain containers, and nothing run of what else a checkpoint holds."""

import pickle
from types import SimpleNamespace
from typing import IO, Any


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
TENSORS_ONLY = SimpleNamespace(Unpickler=_TensorsOnly, load=_load, __name__="tensors_only")
