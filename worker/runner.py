"""One run of one job, from its record to its published outcome."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from jobs import (
    REDIS_AWAY,
    BlobStore,
    ErrorInfo,
    JobError,
    JobOutcome,
    JobRecord,
    JobStatus,
    JobStore,
    Settings,
    input_key,
    map_key,
    result_key,
)
from worker import results
from worker.failures import as_job_error
from worker.metrics import WorkerMetrics
from worker.progress import ProgressReporter, RunCanceled, RunFenced, RunPutBack
from worker.upscaler import Upscaler

# How long the end of a run waits for Redis to come back before it is given up; the work is done by then.
PUBLISH_WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass
class StopFlag:
    """What the signals asked for, and the job that was put back because of them, to be enqueued anew."""

    is_stopping: bool = False
    is_put_back_asked: bool = False
    put_back: JobRecord | None = None


@dataclass(frozen=True)
class JobRunner:
    """Runs jobs with preloaded networks. upscalers: by profile."""

    settings: Settings
    store: JobStore
    blobs: BlobStore
    upscalers: Mapping[str, Upscaler]
    metrics: WorkerMetrics
    stop: StopFlag = field(default_factory=StopFlag)
    sleep: Callable[[float], None] = time.sleep

    def run(self, job_id: str) -> None:
        """Run a job to its end, or leave it in `stop.put_back`.

        Raises the connection errors of redis-py when Redis stays away.
        """
        attempt_id = uuid.uuid4().hex
        with structlog.contextvars.bound_contextvars(job_id=job_id, attempt_id=attempt_id):
            record = self.store.begin_attempt(job_id, attempt_id)
            if record is None:
                log.info("nothing_to_run")  # canceled while it waited, or deleted
                return
            log.info("job_started", profile=record.profile, attempt=record.attempts)
            with self.metrics.busy.track_inprogress():
                self._run_attempt(record, attempt_id)

    def _run_attempt(self, record: JobRecord, attempt_id: str) -> None:
        started = time.monotonic()
        try:
            outcome = self._produce(record, attempt_id)
            status = JobStatus.SUCCEEDED
        except RunPutBack:
            is_released = self._persist(lambda: self.store.release(record.id, attempt_id))
            log.info("job_put_back", is_released=is_released)
            self.stop.put_back = record if is_released else None
            return
        except RunFenced:
            log.warning("job_fenced")  # another attempt holds it, or it was deleted: nothing to say about it
            self._sweep_if_gone(record)
            return
        except RunCanceled:
            outcome, status = JobOutcome(), JobStatus.CANCELED
        except Exception as error:
            told = as_job_error(error)
            if told.code in ("upscale-failed", "internal-error"):
                log.exception("run_failed")
            outcome, status = JobOutcome(error=ErrorInfo.of(told)), JobStatus.FAILED
        is_published = self._persist(lambda: self.store.finish(record.id, attempt_id, status, outcome))
        if is_published:
            self._count(record, status, outcome)
        else:
            self._sweep_if_gone(record)
        log.info(
            "job_ended",
            status=status.value,
            reason=outcome.error.code if outcome.error else "",
            detail=outcome.error.detail if outcome.error else "",
            is_published=is_published,
            seconds=round(time.monotonic() - started, 3),
        )

    def _produce(self, record: JobRecord, attempt_id: str) -> JobOutcome:
        """The outcome of a successful run, its files stored."""
        request, timings = record.options, dict[str, float]()
        reporter = ProgressReporter(
            self.store,
            record.id,
            attempt_id,
            self.metrics,
            must_put_back=lambda: self.stop.is_put_back_asked,
        )
        upscaler = self.upscalers.get(record.profile)
        if upscaler is None:
            raise JobError("profile-not-installed", f"This worker does not serve '{record.profile}'.")
        with _timed(timings, "decode"):
            source = self._read_input(record)
        height, width = source.pixels.shape[:2]
        options = results.upscale_options(request, width, height)
        result = upscaler.upscale(source.pixels, options, on_progress=reporter)
        timings |= result.timings
        with _timed(timings, "maps"):
            maps = results.render_maps(result) if request.maps else {}
        with _timed(timings, "encode"):
            image = results.encode(result, request, source)
        # The last look before files change: a late attempt must not overwrite those of its successor.
        reporter.report("publish", 0, 1, 1.0)
        with _timed(timings, "store"):
            self._put_files(record.id, image, maps)
        return results.build_outcome(result, request, image, maps, timings, upscaler.describe())

    def _read_input(self, record: JobRecord) -> Any:
        data = self.blobs.get(input_key(record.id))
        if data is None:
            raise JobError("storage-unavailable", "The uploaded image is no longer in the storage.")
        return results.decode(data, self.settings.max_input_pixels)

    def _put_files(self, job_id: str, image: bytes, maps: dict[str, results.RenderedMap]) -> None:
        for name, rendered in maps.items():
            self.blobs.put(map_key(job_id, name, "png"), rendered.png)
            self.blobs.put(map_key(job_id, name, "npy"), rendered.npy)
        self.blobs.put(result_key(job_id), image)

    def _persist(self, write: Callable[[], T]) -> T:
        """Do `write`, waiting for a Redis that is away: minutes of work hang on this one call."""
        for seconds in PUBLISH_WAITS_SECONDS:
            try:
                return write()
            except REDIS_AWAY as error:
                log.warning("redis_away", reason=str(error), retry_seconds=seconds)
                self.sleep(seconds)
        return write()

    def _sweep_if_gone(self, record: JobRecord) -> None:
        """Delete the files of a job that was deleted while it ran; nobody else knows of them."""
        try:
            if self.store.get(record.id) is None:
                self.blobs.delete_prefix(record.id)
        except JobError as error:
            log.warning("sweep_failed", reason=error.detail)

    def _count(self, record: JobRecord, status: JobStatus, outcome: JobOutcome) -> None:
        reason = outcome.error.code if outcome.error else ""
        self.metrics.runs.labels(record.profile, status.value, reason).inc()
        if outcome.result:
            means = {name: info.mean for name, info in outcome.maps.items()}
            self.metrics.observe_run(outcome.timings, means, outcome.result.width * outcome.result.height)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
