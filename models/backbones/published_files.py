"""Reading published checkpoint folders: their config.json, and their tensors straight into a network of ours."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from models.checkpoint import first_line

MAX_NAMED = 3  # keys told in an error; the rest is counted


def read_json(path: Path) -> dict[str, Any]:
    """A published JSON file. Raises ValueError when it is absent or broken."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; fetch it again")
    return values


@torch.no_grad()
def load_into(
    network: nn.Module,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    unread: Iterable[str] = (),
    elsewhere: Iterable[str] = (),
) -> None:
    """Fills a network built on the meta device from a safetensors file, tensor by tensor: never twice in memory.

    Floats become `dtype`, whatever they are stored in (DiT4SR mixes float16 and float32).

    Args:
        unread: names the file may hold although `network` has no place for them.
        elsewhere: names of `network` that are not of this file; they stay on the meta device.

    Raises:
        ValueError: no such file, not a safetensors file, or keys that are missing, unknown or of another shape.
    """
    others = set(elsewhere)
    expected = {name: value for name, value in network.state_dict().items() if name not in others}
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            check_keys(path, {name: tuple(value.shape) for name, value in expected.items()}, shapes, set(unread))
            state = {name: place(file.get_tensor(name), device, dtype) for name in expected}
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error
    network.load_state_dict(state, strict=False, assign=True)


def place(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def check_keys(
    path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], unread: set[str]
) -> None:
    """Raises ValueError that tells at once everything which does not fit."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and name not in unread]
    misshaped = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    told = {"missing": missing, "unknown": unknown, "of another shape": misshaped}
    problems = "; ".join(f"{list_some(names)} {what}" for what, names in told.items() if names)
    if problems:
        raise ValueError(f"{path} does not fit its config.json: {problems}")


def list_some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more + (" is" if len(names) == 1 else " are")


def load_pretrained(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A transformers or diffusers model of `kind` from a local folder, ready for inference.

    Raises:
        ValueError: the folder is absent or broken, or lacks weights (the libraries would fill them with noise).
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder / 'config.json'} is missing")
    named = {"torch_dtype": dtype} if kind.__module__.startswith("diffusers") else {"dtype": dtype}
    try:
        network, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **named)
    except Exception as error:
        raise ValueError(f"{folder} cannot be loaded as {kind.__name__} ({first_line(error)})") from error
    wrong = [*info["missing_keys"], *(str(key) for key in info.get("mismatched_keys", []))]
    if wrong:
        raise ValueError(f"{folder} does not fit its config.json: {list_some(sorted(wrong))} missing")
    return network.eval().requires_grad_(False)


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """A transformers tokenizer from a local folder. Raises ValueError when it is absent or broken."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing")
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{folder} holds no tokenizer that can be read ({first_line(error)})") from error


def silence_libraries() -> None:
    """Turns off the progress bars that transformers and diffusers draw while loading: a log is no terminal."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
