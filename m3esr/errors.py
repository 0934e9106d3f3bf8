"""The failures a person can do something about: one clear line each, never a traceback."""

import errno

# Python package that is missing -> the extra that brings it
EXTRAS = {
    "fastapi": "service",
    "uvicorn": "service",
    "limits": "service",
    "torch": "worker",
    "safetensors": "worker",
    "tokenizers": "worker",
    "cv2": "worker",
    "scipy": "evaluation",
    "onnxruntime": "evaluation",
    "diffusers": "diffusion",
    "transformers": "diffusion",
    "accelerate": "diffusion",
    "sentencepiece": "diffusion",
    "huggingface_hub": "diffusion",
    "bitsandbytes": "quantised",
}
# Package of ours that an image may leave out -> where to run what needs it
_IN_THE_WORKER = "Run this in the worker's (m3esr-worker, docs/weights.md), or from the repository"
ELSEWHERE = {
    "models": _IN_THE_WORKER,
    "worker": _IN_THE_WORKER,
    "service": "Run this in the service's (m3esr-service), or from the repository",
    "evaluation": "Run this from the repository",
    "training": "Run this from the repository",
}


class UserError(Exception):
    """Something the person at the keyboard can fix; the message says what happened and what to do."""


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """The message for a package of one of our extras that is not installed; None for any other module."""
    name = (error.name or "").split(".")[0]
    if name in ELSEWHERE:
        return UserError(f"{name} is not part of this image. {ELSEWHERE[name]}, or pip install m3esr.")
    if name not in EXTRAS:
        return None
    return UserError(f"'{name}' is not installed. Install the extra: pip install 'm3esr[{EXTRAS[name]}]'")


def describe_os_error(error: OSError) -> str:
    """One line for a failed file or network operation."""
    place = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{place}no space left on the device. Free some, or write elsewhere."
    return f"{place}{error.strerror or error}"
