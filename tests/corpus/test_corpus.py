"""Some hundred hostile and odd files through the API and a worker: each is taken and comes out right, or is refused.

`make corpus` sends all of them and prints the figures of docs/reliability.md; the tests of every day leave out the
bombs that take long to make.
"""

import collections
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import structlog
from PIL import Image

from jobs import BlobStore, JobQueue, JobStore, Settings, connect
from models.imageio import ImageDecodeError, decode_image
from tests.conftest import RedisServer
from tests.corpus.bad import bad_cases
from tests.corpus.bombs import bomb_cases
from tests.corpus.containers import Case
from tests.corpus.good import good_cases
from tests.corpus.server import MeasuredServer
from tests.unit.worker.fakes import FakeUpscaler
from worker.metrics import WorkerMetrics
from worker.runner import JobRunner

IS_FULL = os.environ.get("CORPUS") == "full"
MAX_SECONDS = 2.0  # of processor time, and by the clock while a processor is free
MAX_SECONDS_ON_A_BUSY_MACHINE = 20.0
FREE_SHARE = 0.05  # of the time, in which something may wait for a processor and one still counts as free
MAX_BYTES = 300_000_000  # of the API's growth and the decoder together, whatever is sent
LARGE_PIXELS = 1_000_000  # beyond this the result is not made: the figures are of the API
GROUPS = {"good": good_cases, "bad": bad_cases, "bombs": lambda: bomb_cases(IS_FULL)}

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the figures come from /proc")


@dataclass
class Figures:
    """What is told of a run."""

    taken: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: tuple[float, str] = (0.0, "")
    slowest_unhindered: tuple[float, str] = (0.0, "none")
    num_unhindered: int = 0
    most_processor: tuple[float, str] = (0.0, "")
    most_growth: tuple[int, str] = (0, "")
    most_decode: tuple[int, str] = (0, "")
    most_memory: tuple[int, str] = (0, "")

    def lines(self) -> list[str]:
        """As a table in Markdown."""
        rows = [("files", self.taken + self.refused.total()), ("taken (2xx)", self.taken)]
        rows += [(f"refused: `{code}`", count) for code, count in self.refused.most_common()]
        rows.append(("slowest answer", f"{self.slowest[0]:.2f} s ({self.slowest[1]})"))
        rows.append(("most processor time", f"{self.most_processor[0]:.2f} s ({self.most_processor[1]})"))
        unhindered = f"{self.slowest_unhindered[0]:.2f} s ({self.slowest_unhindered[1]})"
        rows.append((f"slowest of the {self.num_unhindered} answers during which a processor was free", unhindered))
        for title, (num_bytes, name) in (
            ("most memory: growth of the API", self.most_growth),
            ("most memory: one decode", self.most_decode),
            ("most memory: both together", self.most_memory),
        ):
            rows.append((title, f"{num_bytes / 1e6:.0f} MB ({name})"))
        return [f"| {name} | {value} |" for name, value in rows]


class Bench:
    """A measured API, and a worker with a fake upscaler that runs in the test."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.storage = folder / "storage"
        self.server = MeasuredServer(redis_url, self.storage)
        self.redis, blobs = connect(redis_url), BlobStore.open(str(self.storage))
        self.blobs = blobs
        settings = Settings(redis_url=redis_url, storage_url=str(self.storage))
        store, queue = JobStore(self.redis), JobQueue(self.redis)
        self.runner = JobRunner(settings, store, queue, blobs, "compact", FakeUpscaler(), WorkerMetrics())
        self.figures = Figures()

    def send(self, case: Case) -> tuple[int, dict[str, object]]:
        """Status and body of the answer, its cost noted and held to the limits."""
        files = {"file": (case.file_name, case.data, case.content_type)}
        self.server.forget_peaks()
        processor, stalled, started = self.server.processor_seconds(), _stalled_seconds(), time.perf_counter()
        answer = self.server.http.post("/v1/upscale", files=files, data=dict(case.options))
        seconds, spent = time.perf_counter() - started, self.server.processor_seconds() - processor
        self._note(case, seconds, _stalled_seconds() - stalled, spent)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            self.figures.refused[answer.json()["type"].removeprefix("urn:m3esr:problem:")] += 1
        else:
            self.figures.taken += 1
        return answer.status_code, answer.json()

    def _note(self, case: Case, seconds: float, stalled: float, spent: float) -> None:
        figures, server = self.figures, self.server
        figures.slowest = max(figures.slowest, (seconds, case.name))
        if is_free := stalled < FREE_SHARE * seconds:
            figures.num_unhindered += 1
            figures.slowest_unhindered = max(figures.slowest_unhindered, (seconds, case.name))
        figures.most_processor = max(figures.most_processor, (spent, case.name))
        figures.most_growth = max(figures.most_growth, (server.growth_bytes, case.name))
        figures.most_decode = max(figures.most_decode, (server.decode_peak_bytes, case.name))
        figures.most_memory = max(figures.most_memory, (server.peak_bytes, case.name))
        limit = MAX_SECONDS if is_free else MAX_SECONDS_ON_A_BUSY_MACHINE
        assert seconds < limit and spent < MAX_SECONDS, f"{seconds:.2f} s, {spent:.2f} s of processor"
        assert server.peak_bytes < MAX_BYTES, f"{server.peak_bytes / 1e6:.0f} MB"


def _stalled_seconds() -> float:
    """For how long something on this machine was ready to run and had no processor; the clock where none tells."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().split("\n")[0].rpartition("total=")[2]) / 1e6
    except OSError:
        return time.perf_counter()


@pytest.fixture(scope="module")
def bench(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    connect(redis_server.url).flushall()
    bench = Bench(redis_server.url, tmp_path_factory.mktemp("corpus"))
    with structlog.testing.capture_logs():
        yield bench
    bench.server.close()
    bench.redis.close()
    print("\n" + "\n".join(bench.figures.lines()))  # noqa: T201  for `make corpus`


@pytest.mark.parametrize("group", GROUPS)
def test_each_file_comes_out_right_or_is_refused_for_a_reason(bench, group):
    wrong = {}
    for case in GROUPS[group]():
        try:
            check(bench, case)
        except AssertionError as error:
            wrong[case.name] = str(error).split("\n")[0]
    assert wrong == {}


def check(bench: Bench, case: Case) -> None:
    """Send one file, and hold its answer against what the case says."""
    status, body = bench.send(case)
    if status >= 400:
        code = str(body["type"]).removeprefix("urn:m3esr:problem:")
        assert code in case.codes and 400 <= status < 500, f"refused: {status} {code}: {body['detail']}"
        assert bench.blobs.keys() == [], "left in storage"
        return
    assert status == 202, f"answered {status}"
    try:
        assert case.may_pass or not case.codes, f"taken as {body['input']}"
        size = (body["input"]["width"], body["input"]["height"])
        assert case.size in (None, size), f"measured as {size}"
        if size[0] * size[1] <= LARGE_PIXELS:
            check_result(bench, case, body["id"])
    finally:
        bench.runner.store.request_cancel(body["id"])
        assert bench.server.http.delete(f"/v1/jobs/{body['id']}").status_code == 204
        assert bench.blobs.keys() == []


def check_result(bench: Bench, case: Case, job_id: str) -> None:
    """Run the job, and look at its result with Pillow alone."""
    bench.runner.run_next()
    record = bench.runner.store.require(job_id)
    assert record.status.value == "succeeded", f"the worker failed: {record.outcome.error}"
    image = Image.open(io.BytesIO(bench.server.http.get(f"/v1/jobs/{job_id}/result").content))
    image.load()
    options = record.options
    expected = options.output_size(record.input.width, record.input.height)
    assert (image.format, image.size) == (options.output_format.upper(), expected)
    source = decode_image(case.data)
    has_alpha = image.has_transparency_data
    if options.output_format != "jpeg":
        assert has_alpha == (source.alpha is not None)
    if options.output_format == "png":
        is_gray = image.mode in ("L", "LA", "I;16", "I")
        assert case.has_alpha in (None, has_alpha) and case.is_gray in (None, is_gray), f"came out as {image.mode}"
        # The fake upscaler repeats pixels, so the corners are those of the file.
        corners = np.asarray(image.convert("RGB"), np.float32)[[0, 0, -1, -1], [0, -1, 0, -1]] / 255
        if image.mode not in ("I;16", "I"):  # which Pillow clips where it should scale
            assert np.abs(corners - source.pixels[[0, 0, -1, -1], [0, -1, 0, -1]]).max() < 0.01, "other pixels"


def test_service_and_worker_agree_on_every_small_file(bench):
    """What the API refuses the worker could not have used; what it takes the worker reads (seen above)."""
    for case in (*good_cases(), *bad_cases()):
        if case.codes and not case.may_pass and "animated-image" not in case.codes and case.data:
            with pytest.raises(ImageDecodeError):
                decode_image(case.data)


def test_the_corpus_is_large_enough():
    names = [case.name for case in (*good_cases(), *bad_cases())]
    assert len(names) == len(set(names)) >= 300
