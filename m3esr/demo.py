"""The demo of `m3esr up`: one bundled photograph through the API, its result and maps on disk."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from m3esr.client import Client, Job
from m3esr.errors import UserError
from m3esr.files import write_atomically

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/avif": ".avif"}


def run_demo(client: Client, folder: Path, on_progress: Callable[[Job], None]) -> tuple[Job, list[Path]]:
    """Upscale the sample and write input, result and maps under `folder`; the job and the files.

    Raises ClientError when the service fails it, OSError when a file cannot be written.
    """
    name, data = read_sample()
    job = client.wait(client.submit(data, filename=name), on_progress=on_progress, poll_seconds=0.1)
    return job, [
        write(folder / name, data),
        *save_job(client, job, folder / f"{Path(name).stem}-x4", folder / "maps"),
    ]


def read_sample() -> tuple[str, bytes]:
    """Name and bytes of the first bundled photograph."""
    for entry in sorted(files("m3esr").joinpath("samples").iterdir(), key=lambda item: item.name):
        if entry.name.endswith((".png", ".jpg")):
            return entry.name, entry.read_bytes()
    raise UserError("the bundled sample is missing; install the package again, or use --no-demo")


def save_job(client: Client, job: Job, stem: Path, maps_folder: Path | None) -> list[Path]:
    """Fetch a job's result to `stem` with the suffix of its format, and its maps; the files written."""
    content_type = str((job.body.get("result") or {}).get("content_type", ""))
    result_path = stem.with_name(stem.name + SUFFIXES.get(content_type, ".tiff"))
    written = [write(result_path, client.result(job))]
    if maps_folder is not None:
        written += save_maps(client, job, maps_folder)
    return written


def save_maps(client: Client, job: Job, folder: Path) -> list[Path]:
    """Fetch a job's maps as <name>.png and <name>.npy; the files written."""
    images, values = client.maps(job), client.maps(job, as_values=True)
    return [write(folder / f"{name}.png", data) for name, data in images.items()] + [
        write(folder / f"{name}.npy", data) for name, data in values.items()
    ]


def write(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all; its path."""
    write_atomically(path, data)
    return path
