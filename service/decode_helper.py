"""The helper process that opens uploads: a program of its own that imports nothing of ours, run by service.decoding.

Requests come in on stdin, a line of JSON with the bytes behind it; answers leave on stdout, a line of JSON each: first
what the header says, and once a line `{"go_on": true}` came in, what the whole picture is (after false: nothing in
it). A refusal is the last answer. Every request is served by a fork with limits of its own, so that one upload can
neither starve, crash nor see the next.
"""

import contextlib
import ctypes
import errno
import io
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
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
# Where the system does not tell how long a process waited for a processor, it may have been that long.
UNKNOWN_WAIT_SECONDS = 20.0
MAX_ANSWER_BYTES = 4000  # below PIPE_BUF: such a line is written whole or not at all
_ERRNO = getattr(ctypes.CDLL(None), "__errno_location", None)  # of glibc and musl
if _ERRNO is not None:
    _ERRNO.restype = ctypes.POINTER(ctypes.c_int)


class Refusal(Exception):
    """A reason not to take a file: a code of jobs.errors and its detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def examine(data: bytes, is_whole: bool) -> dict[str, Any]:
    """Width and height as stored, format, and whether the picture lies on its side.

    is_whole: also decode every pixel, once and for nothing: a truncated file is told now and not by a failed job.
    Raises Refusal, MemoryError.
    """
    _forget_denials()
    with _open(data) as image:
        width, height = image.size
        if max(width, height) > MAX_SIDE:
            raise Refusal("too-many-pixels", f"A side of the image has {max(width, height)} pixels, above {MAX_SIDE}.")
        _refuse_animation(image)
        if is_whole:
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
        if image.format in ("WEBP", "AVIF"):
            _decode_frame(image)
        else:
            image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(error) from error


def _decode_frame(image: Image.Image) -> None:
    # The decoder that Pillow wraps makes every pixel; `load` would hold the picture once more, which nobody looks at,
    # and take 17 bytes a pixel of a WebP where this takes 12.
    decoder = image._decoder  # type: ignore[attr-defined]
    frame = decoder.get_next() if image.format == "WEBP" else decoder.get_frame(0)
    if frame is None:
        raise OSError("it has no picture")


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        _raise_if_denied()
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


def _forget_denials() -> None:
    if _ERRNO is not None:
        _ERRNO()[0] = 0


def _raise_if_denied() -> None:
    # Most decoders say of a file that it is damaged when they are denied memory; what malloc left behind tells.
    if _ERRNO is not None and _ERRNO()[0] == errno.ENOMEM:
        raise MemoryError


def _damaged(error: Exception) -> Refusal:
    _raise_if_denied()
    reason = str(error).rstrip(".") or type(error).__name__
    return Refusal("invalid-image", f"The image cannot be read: {reason}.")


def serve(requests: BinaryIO, answers: int) -> None:
    """Answer requests until there are no more."""
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["num_bytes"])
        look = Look(data, request)
        try:
            header = look.next_answer()
            _write(answers, header)
            if "code" not in header:  # our caller looks at the size before it lets us decode pixels
                is_asked = json.loads(requests.readline() or b"{}").get("go_on", False)
                _write(answers, look.next_answer() if is_asked else {})
        finally:
            look.end()
        del data, look  # not held while the next request is waited for


class Look:
    """A fork of this process that looks at one file: at its header, and when asked for the next answer at its pixels.

    It may take so long by the clock while its answers are waited for, not counting the time in which the system denied
    it a processor: a limit of processor time does not end what waits for something that never comes, and one by the
    clock alone would refuse good photographs on a busy machine.
    """

    def __init__(self, data: bytes, request: dict[str, Any]) -> None:
        self._request = request
        self._seconds_left = float(request["wall_seconds"])
        told, self._tell = os.pipe()
        self._answers, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._tell)  # so that it hears when this process ends
            _look_and_end(data, request, told, answers)
        os.close(told)
        os.close(answers)

    def next_answer(self) -> dict[str, Any]:
        """What the header says, then what the whole picture is; a refusal, also in place of a fork that died."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._tell, b"\n")
        if not self._await():
            os.kill(self._pid, signal.SIGKILL)
            return _takes_time(self._request)
        if line := os.read(self._answers, MAX_ANSWER_BYTES):
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = os.waitstatus_to_exitcode(self._reap())
        is_out_of_time = -status in (signal.SIGPROF, signal.SIGXCPU)
        return _takes_time(self._request) if is_out_of_time else _takes_memory(self._request)

    def _await(self) -> bool:
        """Whether an answer came, or the end of the fork, before its time was over."""
        started, delay = time.monotonic(), _seconds_without_processor(self._pid)
        while (left := self._seconds_left - (time.monotonic() - started) + self._delay_since(delay)) > 0:
            if select.select([self._answers], [], [], left)[0]:
                self._seconds_left = left
                return True
        return False

    def _delay_since(self, seconds: float | None) -> float:
        now = _seconds_without_processor(self._pid)
        return UNKNOWN_WAIT_SECONDS if now is None or seconds is None else now - seconds

    def _reap(self) -> int:
        pid, self._pid = self._pid, 0
        return os.waitpid(pid, 0)[1]

    def end(self) -> None:
        """Leave nothing of it."""
        os.close(self._tell)
        os.close(self._answers)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()


def _seconds_without_processor(pid: int) -> float | None:
    """For how long the process was ready to run and could not, since it began; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return None


def _look_and_end(data: bytes, request: dict[str, Any], told: int, answers: int) -> None:
    status = 1
    try:
        # The file lies in our caller's memory too, which is part of what it costs.
        _limit_memory(max(0, request["megabytes"] * 2**20 - len(data)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for is_whole in (False, True):
            if not os.read(told, 1):
                break
            seconds = request["seconds"] - time.process_time() if is_whole else request["header_seconds"]
            _write(answers, _examine_within(max(seconds, 0.01), request, data, is_whole))  # 0 would be no limit
        status = 0
    finally:
        os._exit(status)  # nothing of the helper is to be flushed or unwound by its copy


def _examine_within(seconds: float, request: dict[str, Any], data: bytes, is_whole: bool) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process where it stands, in the midst of C code too
    try:
        return examine(data, is_whole)
    except Refusal as refusal:
        return {"code": refusal.code, "detail": str(refusal)}
    except MemoryError:
        return _takes_memory(request)
    finally:  # what comes now costs nothing
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(num_bytes: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _takes_memory(request: dict[str, Any]) -> dict[str, Any]:
    detail = (
        f"Opening the file takes more memory than the {request['megabytes']} MiB that this server spends on one, the "
        "file itself counted twice. Send the picture smaller, or as JPEG or PNG, which take least; a WebP takes about "
        "12 bytes a pixel, an AVIF up to 10."
    )
    return {"code": "costly-image", "detail": detail}


def _takes_time(request: dict[str, Any]) -> dict[str, Any]:
    detail = (
        f"Opening the file takes more time than the {request['seconds']:g} s that this server spends on one. Send the "
        "picture smaller, or saved anew as a plain JPEG."
    )
    return {"code": "costly-image", "detail": detail}


def _write(answers: int, answer: dict[str, Any]) -> None:
    os.write(answers, json.dumps(answer)[: MAX_ANSWER_BYTES - 1].encode() + b"\n")


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
