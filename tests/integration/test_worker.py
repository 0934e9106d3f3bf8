"""The worker's RQ loop on a real Redis, with a fake upscaler in the same process."""

import hashlib
import io
import signal
import time

import numpy as np
import pytest
from PIL import Image

from jobs import (
    BlobStore,
    JobQueue,
    JobStatus,
    JobStore,
    Recovery,
    Settings,
    connect,
    input_key,
    map_key,
    preview_key,
    queue_name,
    result_key,
)
from tests.chaos.processes import wait_until
from tests.fakes import a_job, picture
from tests.unit.worker.fakes import FakeUpscaler
from worker import tasks
from worker.metrics import WorkerMetrics
from worker.queue import UpscaleWorker, request_stop
from worker.runner import JobRunner, StopFlag


class Bench:
    """A queue, a store, and a worker that runs until the queue is empty."""

    def __init__(self, redis_url, folder):
        self.redis = connect(redis_url, timeout_seconds=None)
        self.settings = Settings(redis_url=redis_url, storage_url=str(folder))
        self.store, self.queue = JobStore(self.redis), JobQueue(self.redis)
        self.blobs = BlobStore.open(str(folder))
        self.metrics, self.stop = WorkerMetrics(), StopFlag()

    def submit(self, data=None, **options):
        record = self.store.create(a_job(**options), max_queue_length=10)
        self.blobs.put(input_key(record.id), picture() if data is None else data)
        self.queue.enqueue(record)
        return record.id

    def reclaim(self, job_id):
        """Take the job back as the reaper does a minute from now, when the lease is over."""
        later = Recovery(self.redis, self.store, self.queue, max_attempts=3, clock=lambda: time.time() + 60)
        assert later.reclaim(job_id) == "queued"

    def drain(self, upscaler):
        tasks.bind(
            JobRunner(
                self.settings,
                self.store,
                self.queue,
                self.blobs,
                "compact",
                upscaler,
                self.metrics,
                self.stop,
                sleep=lambda seconds: None,
            )
        )
        UpscaleWorker(self.redis, "compact", self.stop).work(burst=True)


@pytest.fixture
def bench(redis_url, tmp_path):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    bench = Bench(redis_url, tmp_path / "storage")
    yield bench
    tasks.bind(None)
    bench.redis.close()
    for number, handler in handlers.items():  # RQ's loop set its own
        signal.signal(number, handler)


def files_of(bench, job_id):
    """The last part of each key of a job's files."""
    return {key.rpartition("/")[2] for key in bench.blobs.keys(job_id)}


def test_a_job_ends_with_its_result_its_maps_and_every_number(bench):
    job_id = bench.submit(scale=2, seed=5)
    bench.drain(FakeUpscaler())
    record = bench.store.require(job_id)
    outcome = record.outcome
    assert (record.status, record.attempts) == (JobStatus.SUCCEEDED, 1)
    image = bench.blobs.get(result_key(job_id, record.attempt_id))
    assert outcome.result.sha256 == hashlib.sha256(image).hexdigest()
    assert (outcome.result.bytes, outcome.result.content_type) == (len(image), "image/png")
    assert Image.open(io.BytesIO(image)).size == (outcome.result.width, outcome.result.height) == (32, 24)
    assert set(outcome.maps) == {"segmentation", "depth", "edge", "dino", "uncertainty"}
    for name, info in outcome.maps.items():
        values = np.load(io.BytesIO(bench.blobs.get(map_key(job_id, record.attempt_id, name, "npy"))))
        assert info.mean == pytest.approx(values.mean(), abs=1e-5)
        assert bench.blobs.get(map_key(job_id, record.attempt_id, name, "png")).startswith(b"\x89PNG")
    assert outcome.temperatures["sigma"] == [1.0, 0.5]
    assert outcome.model.checkpoint == "fake.safetensors"
    assert {"decode", "coarse", "denoising", "maps", "encode", "store"} <= set(outcome.timings)
    assert (outcome.seed, outcome.fusion, outcome.error) == (5, "trained", None)


def test_maps_off_publishes_none(bench):
    job_id = bench.submit(maps=False)
    bench.drain(FakeUpscaler())
    assert bench.store.require(job_id).outcome.maps == {}
    assert files_of(bench, job_id) == {"input", "preview", "result"}


def test_nothing_of_rq_is_left_of_a_finished_job(bench):
    bench.submit()
    bench.drain(FakeUpscaler())
    assert bench.redis.keys("rq:job:*") == []


def test_a_cancel_between_steps_ends_the_run_there(bench):
    steps = []

    def cancel_at_first(step):
        steps.append(step)
        bench.store.request_cancel(job_id)

    job_id = bench.submit(num_steps=50)
    bench.drain(FakeUpscaler(cancel_at_first))
    assert bench.store.require(job_id).status is JobStatus.CANCELED
    assert steps == [1]
    assert files_of(bench, job_id) == {"input", "preview"}


def test_a_job_canceled_while_it_waited_is_not_run(bench):
    upscaler = FakeUpscaler()
    bench.store.request_cancel(bench.submit())
    bench.drain(upscaler)
    assert upscaler.num_runs == 0


def test_a_crash_of_the_network_fails_the_job_without_its_words(bench):
    def crash(step):
        raise RuntimeError("secret in /home/someone")

    job_id = bench.submit()
    bench.drain(FakeUpscaler(crash))
    record = bench.store.require(job_id)
    assert (record.status, record.outcome.error.code) == (JobStatus.FAILED, "upscale-failed")
    stored = b"".join(value for value in bench.redis.hgetall(f"m3esr:job:{job_id}").values())
    assert b"secret" not in stored
    assert b"Traceback" not in stored


@pytest.mark.parametrize(("data", "code"), [(b"no image", "unsupported-format"), (picture()[:200], "invalid-image")])
def test_an_unreadable_input_fails_with_its_code(bench, data, code):
    job_id = bench.submit(data)
    bench.drain(FakeUpscaler())
    assert bench.store.require(job_id).outcome.error.code == code


def test_an_input_that_is_gone_fails_the_job(bench):
    job_id = bench.submit()
    bench.blobs.delete_prefix(job_id)
    bench.drain(FakeUpscaler())
    assert bench.store.require(job_id).outcome.error.code == "storage-unavailable"


def test_the_worker_lives_on_after_a_failure(bench):
    bad, good = bench.submit(b"no image"), bench.submit()
    bench.drain(FakeUpscaler())
    assert bench.store.require(bad).status is JobStatus.FAILED
    assert bench.store.require(good).status is JobStatus.SUCCEEDED
    counted = bench.metrics.registry.get_sample_value
    labels = {"profile": "compact", "state": "failed", "reason": "unsupported-format"}
    assert counted("m3esr_worker_runs_total", labels) == 1
    assert counted("m3esr_modality_weight_mean_count", {"modality": "depth"}) == 1
    assert counted("m3esr_uncertainty_mean_count") == 1


def test_an_attempt_that_lost_its_job_publishes_nothing(bench):
    job_id = bench.submit()

    def lose(step):
        bench.reclaim(job_id)
        bench.store.begin_attempt(job_id, "another")

    bench.drain(FakeUpscaler(lose))
    record = bench.store.require(job_id)
    assert (record.status, record.attempt_id) == (JobStatus.RUNNING, "another")
    assert bench.blobs.keys(job_id) == [f"{job_id}/input"]


def test_a_job_deleted_while_it_ran_leaves_no_files(bench):
    job_id = bench.submit()
    bench.drain(FakeUpscaler(lambda step: bench.store.delete(job_id, force=True)))
    assert bench.blobs.keys(job_id) == []


def test_a_second_signal_puts_the_job_back_for_another_worker(bench):
    def stop_twice(step):
        request_stop(bench.stop)
        request_stop(bench.stop)

    job_id, other = bench.submit(), bench.submit()
    bench.drain(FakeUpscaler(stop_twice))
    assert bench.store.require(job_id).status is JobStatus.QUEUED
    assert bench.redis.llen(f"rq:queue:{queue_name('compact')}") == 2
    assert [bench.queue.position(bench.store.require(waiting)) for waiting in (job_id, other)] == [0, 1]
    assert bench.store.require(job_id).attempts == 0
    assert files_of(bench, job_id) == {"input"}
    bench.stop = StopFlag()
    bench.drain(FakeUpscaler())
    assert bench.store.require(job_id).status is JobStatus.SUCCEEDED
    assert bench.store.require(other).status is JobStatus.SUCCEEDED


def test_the_first_signal_ends_the_worker_after_its_job(bench):
    first, second = bench.submit(), bench.submit()
    bench.drain(FakeUpscaler(lambda step: request_stop(bench.stop) if step == 1 else None))
    assert bench.store.require(first).status is JobStatus.SUCCEEDED
    assert bench.store.require(second).status is JobStatus.QUEUED


@pytest.mark.parametrize("function", ["os.mkdir", "worker.main.run", "worker.tasks.bind"])
def test_no_other_function_is_ever_called(bench, tmp_path, function):
    trace = tmp_path / "trace"
    bench.queue.rq_queue("compact").enqueue_call(function, args=(str(trace),), result_ttl=0)
    job_id = bench.submit()
    bench.drain(FakeUpscaler())
    assert not trace.exists()
    assert bench.store.require(job_id).status is JobStatus.SUCCEEDED


def test_a_callback_named_in_the_queue_is_never_called(bench, tmp_path):
    job_id = bench.submit()
    [dispatch] = bench.redis.keys(f"rq:job:{job_id}-*")
    bench.redis.hset(dispatch, "success_callback_name", "worker.tasks.bind")
    bench.drain(FakeUpscaler())
    assert bench.store.require(job_id).status is JobStatus.SUCCEEDED
    assert tasks._runner is not None


def test_a_job_under_another_workers_lease_is_left_alone(bench):
    job_id = bench.submit()
    bench.store.begin_attempt(job_id, "another")
    upscaler = FakeUpscaler()
    bench.drain(upscaler)
    assert upscaler.num_runs == 0
    assert bench.store.require(job_id).attempt_id == "another"


def test_the_run_that_is_published_sweeps_what_dead_runs_left(bench):
    job_id = bench.submit()
    bench.store.begin_attempt(job_id, "dead")
    bench.reclaim(job_id)
    bench.blobs.put(result_key(job_id, "dead"), b"half a result")
    bench.drain(FakeUpscaler())
    record = bench.store.require(job_id)
    assert (record.status, record.attempts) == (JobStatus.SUCCEEDED, 2)
    assert {key.split("/")[1] for key in bench.blobs.keys(job_id)} == {"input", record.attempt_id}


def test_a_preview_is_there_while_the_job_runs_and_stays(bench):
    def look(step):
        preview = wait_until(lambda: bench.store.require(job_id).preview, 10, "the preview is told of")
        assert preview.fraction == 1.0
        assert bench.blobs.exists(preview_key(job_id, bench.store.require(job_id).attempt_id))

    job_id = bench.submit()
    bench.drain(FakeUpscaler(look))
    record = bench.store.require(job_id)
    assert record.status is JobStatus.SUCCEEDED
    assert (record.preview.width, record.preview.height) == (16, 12)
    assert bench.blobs.get(preview_key(job_id, record.attempt_id)).startswith(b"\xff\xd8")


def test_a_replayed_job_keeps_nothing_of_its_first_life(bench):
    job_id = bench.submit()
    bench.drain(FakeUpscaler(lambda step: bench.store.request_cancel(job_id)))
    first = bench.store.require(job_id)
    bench.blobs.put(result_key(job_id, first.attempt_id), b"half a result")
    bench.queue.enqueue(bench.store.replay(job_id, max_queue_length=9))
    bench.drain(FakeUpscaler())
    record = bench.store.require(job_id)
    assert (record.status, record.attempts, record.replays) == (JobStatus.SUCCEEDED, 1, 1)
    assert {key.split("/")[1] for key in bench.blobs.keys(job_id)} == {"input", record.attempt_id}
    assert first.attempt_id != record.attempt_id
