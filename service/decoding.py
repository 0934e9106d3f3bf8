"""Opening uploads at arm's length: in helper processes that bound the time and memory each may cost.

In the process of the API neither could be bounded: a JPEG of 3 MB with thousands of empty scans decodes for minutes, a
PNG of millions of empty chunks is parsed for ten seconds, and a thread in C code cannot be stopped.
"""

import asyncio
import atexit
import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import JobError
from service.waiting import Seat

NUM_HELPERS = 2  # each may hold a whole image in memory
BEGIN_SECONDS = 0.25  # in which a decoder that is free has surely begun
_PROGRAM = Path(__file__).with_name("decode_helper.py")


@dataclass(frozen=True)
class ImageFacts:
    """What a file says of itself. width, height: pixels, as a person sees them."""

    width: int
    height: int
    format: str


@dataclass(frozen=True)
class Limits:
    """What opening one file may cost.

    header_seconds, seconds: of processor time, for the header and for all of it.
    wall_seconds: for all of it by the clock, while the decoder has a processor.
    megabytes: of memory (MiB), of the decoder and of the file itself in the API together.
    """

    header_seconds: float
    seconds: float
    wall_seconds: float
    megabytes: int


Check = Callable[[ImageFacts], None]


class Helper:
    """One helper process, started when it is first asked and again when it died. For one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], data: bytes, check: Check) -> ImageFacts:
        """What the file is, once `check` let its header pass and every pixel was decoded.

        Raises JobError for a refusal of the helper's or of `check`, RuntimeError when it died twice over one file.
        """
        for _ in range(2):
            with contextlib.suppress(OSError, ValueError):
                return self._ask_once(request, data, check)
            self.stop()
        raise RuntimeError("the helper that decodes uploads died twice over one file")

    def _ask_once(self, request: dict[str, Any], data: bytes, check: Check) -> ImageFacts:
        header = _facts(self._say(request | {"num_bytes": len(data)}, data))
        try:
            check(header)
        except BaseException:
            self._say({"go_on": False})
            raise
        return _facts(self._say({"go_on": True}))

    def _say(self, words: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                # -P: the program's folder is ours and must not shadow the standard library's modules.
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libtiff comments on every damaged file
                # Else glibc keeps the room of a large file for the next, and each fork begins with it.
                env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
                start_new_session=True,  # Ctrl-C is for the API, which first ends what it began
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.write(data)
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())  # an empty line, of a dead helper, is no JSON
        assert isinstance(answer, dict)
        return answer

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):  # what is left in a pipe to nobody
                self._process.communicate()
            self._process = None


class _Work:
    """A file to be opened. data: emptied when nobody wants it any more. began_at: by time.monotonic."""

    def __init__(self, data: bytes, check: Check, limits: Limits) -> None:
        self.data, self.check, self.limits = data, check, limits
        self.began_at: float | None = None


class Decoders:
    """As many helpers as images are opened at once, each with a thread of its own; who comes later waits in line.

    Who waits holds no thread: those of the pool are for other routes. For any event loop.
    """

    def __init__(self, num_helpers: int = NUM_HELPERS) -> None:
        self._helpers = [Helper() for _ in range(num_helpers)]
        self._idle: queue.SimpleQueue[Helper] = queue.SimpleQueue()
        for helper in self._helpers:
            self._idle.put(helper)
        self._threads = ThreadPoolExecutor(num_helpers, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._is_known_at_exit = False

    async def examine(self, data: bytes, check: Check, limits: Limits, seat: Seat) -> ImageFacts:
        """What the image is, once every pixel of it was decoded.

        check: told what the header says, before a pixel is decoded; may raise to refuse it. Called in a thread.
        seat: for how long a decoder is waited for; what was waited is taken off.
        Raises JobError unsupported-format, invalid-image, animated-image, too-many-pixels, costly-image, what `check`
        raises, decoders-busy, and bad-request when the caller hung up before a decoder was free.
        """
        work, asked_at = _Work(data, check, limits), time.monotonic()
        turn = self._threads.submit(self._open, work)
        answer = asyncio.wrap_future(turn)
        try:
            awaited: set[asyncio.Future[Any]] = {answer, seat.gone}
            seconds = max(seat.seconds, BEGIN_SECONDS)
            await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if turn.cancel():  # it had not begun
                raise seat.refusal()
            return await answer
        finally:
            turn.cancel()  # when it is this request that was given up
            work.data = b""  # a turn that was given up stays in line, empty
            seat.seconds -= (work.began_at or time.monotonic()) - asked_at

    def _open(self, work: _Work) -> ImageFacts:
        work.began_at = time.monotonic()
        with self._lock:
            if not self._is_known_at_exit:
                atexit.register(self.stop)
                self._is_known_at_exit = True
        helper = self._idle.get_nowait()  # there are no more threads than helpers
        try:
            return helper.ask(dataclasses.asdict(work.limits), work.data, work.check)
        finally:
            self._idle.put(helper)

    def stop(self) -> None:
        """End all helpers; the next file starts one again."""
        for helper in self._helpers:
            helper.stop()


def _facts(answer: dict[str, Any]) -> ImageFacts:
    """What the helper found. Raises JobError when it refused the file."""
    if "code" in answer:
        raise JobError(answer["code"], answer["detail"], field="file")
    width, height = answer["width"], answer["height"]
    if answer["is_on_its_side"]:
        width, height = height, width
    return ImageFacts(width=width, height=height, format=answer["format"])
