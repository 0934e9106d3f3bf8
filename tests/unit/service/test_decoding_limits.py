"""What a look at a file may cost, and that a limit ends it: time by the processor and the clock, and memory."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import JobError
from service.decode_helper import Refusal, examine
from service.decoding import Decoders, ImageFacts, Limits
from tests.fakes import picture
from tests.heic import heic_of
from tests.unit.service.seats import examine_now

AMPLE = Limits(header_seconds=10, seconds=30, wall_seconds=60, megabytes=1000)
needs_proc = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="looks into /proc")


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(num_helpers=1)
    yield decoders
    decoders.stop()


@pytest.fixture(scope="module")
def slow_file() -> bytes:
    """A PNG that takes a few tenths of a second."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000), np.uint8)
    Image.fromarray(noise).resize((4000, 4000)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def flat_png(width: int, height: int) -> bytes:
    """A PNG of one colour: few bytes, many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def examine_whole(decoders: Decoders, data: bytes, limits: Limits) -> ImageFacts:
    return examine_now(decoders, data, lambda facts: None, limits)


def processor_seconds(decoders: Decoders) -> float:
    """What the forks of the helper that have ended took."""
    fields = Path(f"/proc/{decoders._helpers[0]._process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def refusal(decoders: Decoders, data: bytes, limits: Limits) -> JobError:
    with pytest.raises(JobError) as raised:
        examine_whole(decoders, data, limits)
    return raised.value


@needs_proc
def test_a_decoder_that_is_stuck_is_ended_by_the_clock_and_the_next_file_is_taken(decoders, slow_file):
    examine_whole(decoders, picture(), AMPLE)  # the helper is there
    helper = decoders._helpers[0]._process
    children = Path(f"/proc/{helper.pid}/task/{helper.pid}/children")
    while children.read_text():  # the fork that answered may not have ended yet
        time.sleep(0.001)

    def stop_the_fork():
        while not (child := children.read_text()):
            time.sleep(0.001)
        os.kill(int(child), signal.SIGSTOP)

    thread = threading.Thread(target=stop_the_fork)
    thread.start()
    started = time.monotonic()
    error = refusal(decoders, slow_file, replace(AMPLE, wall_seconds=0.5))
    thread.join()
    assert (error.code, "time" in error.detail) == ("costly-image", True)
    assert 0.5 <= time.monotonic() - started < 10
    assert examine_whole(decoders, picture(16, 12), AMPLE).width == 16


@needs_proc
def test_time_without_a_processor_is_no_fault_of_the_file(decoders, slow_file):
    core = min(os.sched_getaffinity(0))
    examine_whole(decoders, slow_file, AMPLE)
    examine_whole(decoders, picture(), AMPLE)  # by now the fork of the file before has ended and is counted
    seconds = processor_seconds(decoders)
    os.sched_setaffinity(decoders._helpers[0]._process.pid, {core})
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.sched_setaffinity(0, {core}))
        for _ in range(12)
    ]
    limits, took = replace(AMPLE, wall_seconds=2 * seconds), 0.0
    try:
        for _ in range(10):  # until the burners are at work: before that nothing is shown
            started = time.monotonic()
            assert examine_whole(decoders, slow_file, limits).width == 4000
            took = time.monotonic() - started
            if took > 2 * seconds:
                break
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert took > 2 * seconds


def test_processor_time_ends_what_takes_too_much(decoders, slow_file):
    error = refusal(decoders, slow_file, replace(AMPLE, seconds=0.02))
    assert (error.code, "time" in error.detail) == ("costly-image", True)


def test_memory_is_limited_by_one_number_whatever_the_size(decoders):
    small, large = flat_png(3000, 4000), flat_png(3000, 6000)  # 48 and 72 MB as Pillow holds them
    tight = replace(AMPLE, megabytes=80)
    assert examine_whole(decoders, small, tight).height == 4000
    detail = refusal(decoders, large, tight).detail
    assert "80 MiB" in detail and "as JPEG or PNG" in detail


def test_the_file_counts_in_the_api_too(decoders):
    data = flat_png(1000, 1000) + bytes(30 << 20)  # the decoder holds 16 MiB of its own and the file
    assert refusal(decoders, data, replace(AMPLE, megabytes=70)).code == "costly-image"
    assert examine_whole(decoders, data, replace(AMPLE, megabytes=90)).width == 1000


def encoded(width: int, height: int, kind: str) -> bytes:
    """A whole picture of one colour; kind: format and what is special about it."""
    file, flat, image_format = io.BytesIO(), Image.new("RGB", (width, height), "teal"), kind.split("-")[0]
    if image_format == "HEIC":
        return heic_of(flat)
    save = {
        "JPEG-progressive": {"progressive": True, "subsampling": 0},
        "WEBP-lossless": {"lossless": True, "method": 0},
        "WEBP": {"method": 0},
        "AVIF": {"speed": 10},
        "TIFF-deflate": {"compression": "tiff_deflate"},
    }
    flat.save(file, image_format, **save.get(kind, {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF-deflate", "JPEG-progressive", "WEBP", "WEBP-lossless", "AVIF", "HEIC"])
def test_a_whole_picture_is_never_called_damaged_for_want_of_memory(decoders, kind):
    data = encoded(1500, 2000, kind)
    verdicts = []
    for megabytes in range(18, 100, 4):
        try:
            examine_whole(decoders, data, replace(AMPLE, megabytes=megabytes))
            verdicts.append("taken")
        except JobError as error:
            verdicts.append(error.code)
    assert set(verdicts) == {"costly-image", "taken"}
    assert verdicts == sorted(verdicts)  # enough is enough


def test_a_picture_cut_off_is_found_damaged_and_not_costly(decoders):
    for kind in ("PNG", "JPEG-progressive", "WEBP", "AVIF", "HEIC"):
        data = encoded(300, 200, kind)
        assert refusal(decoders, data[: len(data) * 3 // 4], AMPLE).code == "invalid-image", kind


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_drawn_small_is_found_damaged_wherever_one_drawn_whole_is(mode, progressive):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    noise.save(file, "JPEG", progressive=progressive)
    data = file.getvalue()
    verdicts = set()
    for end in (*range(len(data) - 200, len(data) + 1), *range(2, len(data), 97)):
        try:
            with Image.open(io.BytesIO(data[:end]), formats=["JPEG"]) as image:
                image.load()
            is_whole = True
        except OSError:
            is_whole = False
        try:
            facts = examine(data[:end], True)
            assert is_whole and (facts["width"], facts["height"]) == (64, 40), end
        except Refusal:
            assert not is_whole, end
        verdicts.add(is_whole)
    assert verdicts == {True, False}
