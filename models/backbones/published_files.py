"""Reading published checkpoint folders: their config.json, and their tensors straight into a network of ours."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

MAX_NAMED = 3  # keys told in an error; the rest is counted


def require(root: Path, profile: str, paths: Iterable[str]) -> None:
    """Raises ValueError, naming the command that helps, when one of the files or folders is not under `root`."""
    absent = [path for path in paths if not (root / path).exists()]
    if absent:
        raise ValueError(
            f"profile {profile!r} is not installed: {list_some(absent)} missing under {root}; "
            f"fetch it with: m3esr models pull {profile}"
        )


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
) -> None:
    """Fills a network built on the meta device from a safetensors file, tensor by tensor: never twice in memory.

    Floats become `dtype`, whatever they are stored in (DiT4SR mixes float16 and float32).

    Args:
        unread: names the file may hold although `network` has no place for them.

    Raises:
        ValueError: no such file, not a safetensors file, or keys that are missing, unknown or of another shape.
    """
    expected = network.state_dict()
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
    network.load_state_dict(state, assign=True)


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
