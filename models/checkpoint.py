"""Checkpoints: safetensors files that carry the configuration of their network as JSON in the metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.pickled import TENSORS_ONLY

Config = TypeVar("Config")


def save_checkpoint(path: Path, tensors: dict[str, Tensor], config: object, dtype: torch.dtype | None = None) -> None:
    """Writes `tensors` (floats in `dtype` when given) with `config`, a dataclass. Whole or not at all."""
    prepared = {
        name: (t.to(dtype) if dtype is not None and t.is_floating_point() else t).detach().contiguous().cpu()
        for name, t in tensors.items()
    }
    temporary = path.with_suffix(".tmp")
    save_file(prepared, temporary, metadata={"config": json.dumps(asdict(config))})  # type: ignore[call-overload]
    temporary.chmod(0o644)  # safetensors writes for the owner alone; a worker may run as another user
    temporary.replace(path)


def read_config(path: Path, kind: type[Config]) -> Config:
    """The configuration that the checkpoint was saved with.

    Raises ValueError when the file is no checkpoint of ours, or of another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); fetch or train the checkpoint again") from error
    if "config" not in metadata:
        raise ValueError(f"{path} has no configuration in its metadata, so it was not saved by this project")
    return parse(json.loads(metadata["config"]), kind)


def read_tensors(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every tensor of the file; floats in `dtype`, whatever precision they were stored in."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def read_foreign(path: Path, *, objects: Literal["refuse", "drop"] = "refuse") -> Mapping[str, Any]:
    """The content of a checkpoint that others saved: .safetensors, else anything that torch saved.

    A pickle may run code, so only tensors and plain containers are read. objects: what becomes of anything else;
    files of training frameworks name classes of their own, which can be dropped unread. Raises ValueError, with
    what to do, when the file is missing, broken or holds what is refused.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; put the published file there")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # mapped: of a checkpoint with its optimizer, only what is asked for is read from the disk
        reader: Any = {"pickle_module": TENSORS_ONLY} if objects == "drop" else {}
        content = torch.load(path, map_location="cpu", weights_only=not reader, mmap=is_zipfile(path), **reader)
    except Exception as error:  # a broken file fails in pickle, zip, struct or torch, each with its own class
        raise ValueError(f"{path} cannot be read as weights ({first_line(error)}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not weights by name; fetch it again")
    return content


def first_line(error: Exception) -> str:
    """What an error says, without the pages of advice that torch puts around it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse(value: Any, kind: Any) -> Any:
    """JSON -> frozen dataclass: lists become tuples, nested dictionaries nested dataclasses."""
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        unknown = set(value) - {f.name for f in fields(kind)}
        if unknown:
            raise ValueError(
                f"{kind.__name__} has no field {', '.join(sorted(unknown))}: the checkpoint is of another version"
            )  # type: ignore[union-attr]
        return kind(**{name: parse(item, hints[name]) for name, item in value.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple and isinstance(value, list):
        args = get_args(kind)
        return tuple(parse(item, args[0] if args[-1] is Ellipsis else args[k]) for k, item in enumerate(value))
    if get_origin(kind) in (Union, UnionType):
        chosen = next((k for k in get_args(kind) if is_dataclass(k) and isinstance(value, dict)), None)
        return parse(value, chosen) if chosen else value
    return value
