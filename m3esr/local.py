"""`m3esr upscale`: images upscaled in this process, without Redis or server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import JobError, OutputFormat, Settings, UpscaleRequest
from m3esr.errors import UserError
from m3esr.files import write_atomically

SUFFIX_FORMATS: dict[str, OutputFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".avif": "avif",
    ".tif": "tiff",
    ".tiff": "tiff",
}
FORMAT_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "avif": ".avif", "tiff": ".tiff"}


@dataclass(frozen=True)
class Plan:
    """One input and where its result and maps go."""

    source: Path
    target: Path
    maps_folder: Path | None


def choose_format(output: Path, asked: str | None, is_folder: bool) -> str:
    """The output format: what was asked, else by the suffix of OUT, else png. Raises UserError."""
    if asked is not None:
        return asked
    if is_folder:
        return "png"
    try:
        return SUFFIX_FORMATS[output.suffix.lower()]
    except KeyError:
        known = " ".join(SUFFIX_FORMATS)
        raise UserError(f"{output}: unknown suffix. Use one of {known}, or --format.") from None


def make_plan(sources: Sequence[Path], output: Path, maps_folder: Path | None, output_format: str) -> list[Plan]:
    """Where each input goes: to OUT itself, or into the folder OUT under its own name when there are several.

    Raises UserError on inputs that are missing, or that would overwrite each other or themselves.
    """
    for source in sources:
        if not source.is_file():
            raise UserError(f"{source}: {'is a folder' if source.is_dir() else 'no such file'}")
    if len(sources) == 1 and not output.is_dir():
        plans = [Plan(sources[0], output, maps_folder)]
    else:
        if output.exists() and not output.is_dir():
            raise UserError(f"{output} is a file; with several inputs OUT is a folder")
        suffix = FORMAT_SUFFIXES[output_format]
        plans = [
            Plan(source, output / f"{source.stem}{suffix}", maps_folder and maps_folder / source.stem)
            for source in sources
        ]
    taken: dict[Path, Path] = {}
    for plan in plans:
        other = taken.setdefault(plan.target.resolve(), plan.source)
        if other is not plan.source:
            raise UserError(f"{other} and {plan.source} would both become {plan.target}")
        if plan.target.resolve() == plan.source.resolve():
            raise UserError(f"{plan.target} would overwrite its own input")
    return plans


def upscale_file(
    plan: Plan,
    request: UpscaleRequest,
    upscaler: Any,
    settings: Settings,
    on_progress: Callable[[Any], None],
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Path]:
    """Upscale one file as the worker would; the files written. on_note: told what the run did otherwise than asked.

    Raises UserError, OSError.
    """
    from worker import results  # heavy: models come with it

    try:
        source = results.decode(plan.source.read_bytes(), settings.max_input_pixels)
        height, width = source.pixels.shape[:2]
        options = results.upscale_options(request, width, height)
        result = upscaler.upscale(source.pixels, options, on_progress=on_progress)
        image = results.encode(result, request, source)
    except JobError as error:
        raise UserError(f"{plan.source}: {error.detail}") from error
    for note in result.notes:
        on_note(f"{plan.source.name}: {note}")
    write_atomically(plan.target, image)
    written = [plan.target]
    if plan.maps_folder is not None:
        for name, rendered in results.render_maps(result).items():
            for suffix, data in ((".png", rendered.png), (".npy", rendered.npy)):
                path = plan.maps_folder / f"{name}{suffix}"
                write_atomically(path, data)
                written.append(path)
    return written
