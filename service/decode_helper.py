"""The helper process that opens uploads: a program of its own that imports nothing of ours, run by service.decoding.

Requests come in on stdin, a line of JSON with the bytes behind it; answers leave on stdout, a line of JSON each. Every
request is served by a fork with limits of its own, so that one upload can neither starve, crash nor see the next.
"""

import contextlib
import io
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pi_heif
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

# Formats by Pillow's names; nothing else is tried, whatever Pillow could read.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "HEIF")
READABLE = "PNG, JPEG, WebP, AVIF, TIFF and HEIC"
TOLD_AS = {"MPO": "jpeg", "HEIF": "heic"}
# What a worker can use of what Pillow reads: no signed, 32-bit or floating-point samples, no L*a*b*.
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
)
MAX_SIDE = 65_535
EXIF_ORIENTATION, TIFF_SAMPLE_FORMAT = 0x0112, 339
# The limit of memory is that of an image of so many pixels or fewer; a larger one has more in proportion. Decoders take
# up to 16 bytes a pixel (WebP: two canvases, a copy and Pillow's own), so no one number suits thumbnail and poster.
LIMITED_PIXELS = 12_000_000
# Where the system does not tell how long a process waited for a processor, it may have been that long.
UNKNOWN_WAIT_SECONDS = 20.0


class Refusal(Exception):
    """A reason not to take a file: a code of jobs.errors and its detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def examine(data: bytes, is_whole: bool, allow_pixels: Callable[[int], None]) -> dict[str, Any]:
    """Width and height as stored, format, and whether the picture lies on its side.

    is_whole: also decode every pixel, once and for nothing: a truncated file is told now and not by a failed job.
    allow_pixels: told how many pixels will be decoded, before they are. Raises Refusal.
    """
    with _open(data) as image:
        width, height = image.size
        if max(width, height) > MAX_SIDE:
            raise Refusal("too-many-pixels", f"A side of the image has {max(width, height)} pixels, above {MAX_SIDE}.")
        _refuse_animation(image)
        if is_whole:
            allow_pixels(width * height)
            _load(image)
        _refuse_samples(image)
        return {
            "width": width,
            "height": height,
            "format": TOLD_AS.get(str(image.format), str(image.format).lower()),
            "is_on_its_side": _is_on_its_side(image, is_whole),
        }


def _load(image: Image.Image) -> None:
    try:
        if image.format in ("JPEG", "MPO"):
            # Every coefficient is read, so what is damaged is found, but an eighth of the rows and columns is drawn:
            # a third of the time, and of memory what a progressive file needs for its coefficients.
            image.draft(image.mode, (1, 1))
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(error) from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise Refusal("unsupported-format", f"The file is none of {READABLE}, or its header is damaged.") from error
    except Exception as error:  # a parser fed with garbage may raise anything
        raise _damaged(error) from error


def _refuse_animation(image: Image.Image) -> None:
    if image.format == "MPO":
        # What phones write into .jpg files: the first picture is the photograph, the others its previews.
        return
    try:
        # One step, not n_frames: counting walks all pages of a TIFF, and a file may claim millions.
        image.seek(1)
    except EOFError:
        return
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(error) from error
    raise Refusal("animated-image", "Send one picture: the file has more than one frame or page.")


def _refuse_samples(image: Image.Image) -> None:
    # TIFF alone names the kind of its samples; Pillow shows some signed ones as if they were not.
    kinds = image.tag_v2.get(TIFF_SAMPLE_FORMAT, (1,)) if image.format == "TIFF" else (1,)  # type: ignore[attr-defined]
    if image.mode in ("P", "PA") and image.palette is None:
        raise Refusal("invalid-image", "The image has no palette to take its colours from.")
    if image.mode not in MODES or any(kind != 1 for kind in kinds):
        raise Refusal("unsupported-format", f"Images of {image.mode} samples, signed or floating point are not taken.")


def _is_on_its_side(image: Image.Image, is_whole: bool) -> bool:
    if image.format == "PNG" and "exif" not in image.info and not is_whole:
        return False  # Pillow would decode it all to look for EXIF behind the pixels; the whole reading tells
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF is no reason to refuse a picture
        return False


def _damaged(error: Exception) -> Refusal:
    reason = str(error).rstrip(".") or type(error).__name__
    return Refusal("invalid-image", f"The image cannot be read: {reason}.")


def serve(requests: BinaryIO, answers: int) -> None:
    """Answer requests until there are no more."""
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["num_bytes"])
        alive, held_by_child = os.pipe()
        child = os.fork()
        if child == 0:
            _answer_and_end(data, request, answers)
        os.close(held_by_child)
        is_over = _await_end(child, alive, request["wall_seconds"])
        os.close(alive)
        if not is_over:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status:  # it died before it answered
            is_late = not is_over or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in _OUT_OF_TIME)
            _write(answers, _too_costly("time" if is_late else "memory"))
        del data  # not held while the next request is waited for


_OUT_OF_TIME = (signal.SIGPROF, signal.SIGXCPU)


def _await_end(child: int, alive: int, seconds: float) -> bool:
    """Whether the child ended within so many seconds by the clock, those not counted in which it had no processor.

    A limit of processor time does not end what waits for something that never comes, and one by the clock alone would
    refuse good photographs on a busy machine. alive: the end of a pipe whose other end the child alone holds.
    """
    until = time.monotonic() + seconds
    while (left := until + _seconds_without_processor(child) - time.monotonic()) > 0:
        if select.select([alive], [], [], left)[0]:
            return True
    return False


def _seconds_without_processor(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return UNKNOWN_WAIT_SECONDS


def _answer_and_end(data: bytes, request: dict[str, Any], answers: int) -> None:
    status = 1
    try:
        num_bytes = request["megabytes"] * 2**20
        _limit(request["seconds"], num_bytes)
        try:
            answer = examine(data, request["is_whole"], lambda pixels: _allow_pixels(pixels, num_bytes))
            answer["seconds"] = time.process_time()
        except Refusal as refusal:
            answer = {"code": refusal.code, "detail": str(refusal)}
        except MemoryError:
            answer = _too_costly("memory")
        _write(answers, answer)
        status = 0
    finally:
        os._exit(status)  # nothing of the helper is to be flushed or unwound by its copy


def _limit(seconds: float, num_bytes: int) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process where it stands, in the midst of C code too
    _limit_memory(num_bytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_pixels(num_pixels: int, num_bytes: int) -> None:
    _limit_memory(num_bytes * max(num_pixels, LIMITED_PIXELS) // LIMITED_PIXELS)


def _limit_memory(num_bytes: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _too_costly(what: str) -> dict[str, Any]:
    return {"code": "costly-image", "detail": f"Decoding the image takes more {what} than this server spends on one."}


def _write(answers: int, answer: dict[str, Any]) -> None:
    os.write(answers, json.dumps(answer)[:4000].encode() + b"\n")  # below PIPE_BUF: whole or not at all


def main() -> None:
    """Serve stdin and stdout."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # the service has limits of its own
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a thread takes memory before it does anything
    # One picture is wanted: what else is in the file is not even looked at.
    pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    warnings.simplefilter("ignore")  # Pillow warns of odd metadata
    serve(sys.stdin.buffer, sys.stdout.fileno())


if __name__ == "__main__":
    main()
