"""What the service adds to the time of a job, and what a worker keeps of the jobs it ran."""

import io
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.chaos.processes import wait_until
from tests.load.processes import IS_FULL, slope, tell

pytestmark = pytest.mark.timeout(1500)
NUM_PAIRS = 6 if IS_FULL else 1
NUM_RUNS = 6 if IS_FULL else 2
NUM_JOBS = 500 if IS_FULL else 40
SAMPLE = Path(__file__).parents[2] / "m3esr" / "samples" / "bridge.png"


def sample(side: int) -> bytes:
    file = io.BytesIO()
    Image.open(SAMPLE).convert("RGB").resize((side, side), Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()


def assert_same_picture(a: bytes, b: bytes) -> None:
    """Two PNG files of one picture: at most a grey level apart, as far as the order of sums may bring them."""
    first, second = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (a, b))
    assert first.shape == second.shape and np.abs(first - second).max() <= 1


def test_the_service_adds_little_to_the_time_of_a_job(stage):
    """From the upload's first byte to the result's last, against the same work in one process, in turns.

    Two processes that do the same work differ by some percent for as long as they live, by where their memory happens
    to lie. So several pairs are asked, and the median over all of them is told.
    """
    api, data = stage.api(), sample(128 if IS_FULL else 32)
    inside, through, beside = [], [], []
    for _ in range(NUM_PAIRS):
        worker, in_process = stage.worker(is_real=True), stage.in_process()
        wait_until(lambda: api.http.get("/readyz").status_code == 200, 120, "the worker is ready")
        for run in range(NUM_RUNS + 1):
            seconds, image = in_process.upscale(data)
            started = time.perf_counter()
            job = api.http.post("/v1/upscale", files={"file": ("a.png", data)}, headers={"Prefer": "wait=60"}).json()
            served = api.http.get(job["result"]["url"]).content
            total = time.perf_counter() - started
            assert_same_picture(served, image)
            if run:  # the first of a process pays for allocations
                inside.append(seconds)
                through.append(total)
                beside.append(total - sum(job["timings"].values()))
        stage.end(worker)
        stage.end(in_process)
        wait_until(lambda: api.http.get("/readyz").status_code == 503, 60, "the worker is known to be gone")
    within, total = statistics.median(inside), statistics.median(through)
    # Each pair ran side by side; the median of the differences is what the service adds.
    added = statistics.median(b - a for a, b in zip(inside, through, strict=True))
    tell(
        "service overhead",
        f"in process {within:.3f} s, through the service {total:.3f} s, medians of {NUM_PAIRS} pairs of processes",
        f"added {1e3 * added:.0f} ms ({added / within:.1%})",
        f"beside the stages of the job {1e3 * statistics.median(beside):.0f} ms",
        f"stages {job['timings']}",
    )
    if IS_FULL:
        assert added < 0.06 and added < 0.05 * within


@pytest.mark.parametrize("is_real", [False, pytest.param(True, marks=pytest.mark.skipif(not IS_FULL, reason="full"))])
def test_a_worker_keeps_nothing_of_the_jobs_it_ran(stage, is_real):
    """With the stand-in for the networks and, at full length, with the networks (32 to 128 px)."""
    worker, image = stage.worker(is_real=is_real), sample(32)
    memory = []
    for _ in range(20 + NUM_JOBS):
        job_id = stage.submit(image)
        wait_until(lambda job=job_id: stage.store.require(job).status.is_final, 120, "the job ended")
        memory.append(float(worker.memory_bytes))
    growth = slope(memory[20:])
    kind = "networks" if is_real else "stand-in"
    tell(
        f"memory of a worker ({kind})",
        f"{growth / 1024:+.1f} KiB a job over {NUM_JOBS} jobs, {memory[-1] / 2**20:.0f} MiB",
    )
    # Over few jobs an allocator's one step weighs much.
    assert growth < (50_000 if IS_FULL else 400_000)
