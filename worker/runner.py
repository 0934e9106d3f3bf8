"""One run of one job, from its record to its published outcome."""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from jobs import (
    CONTENT_TYPES,
    REDIS_AWAY,
    BlobStore,
    ErrorInfo,
    JobError,
    JobOutcome,
    JobQueue,
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
from worker.lease import LeaseKeeper
from worker.metrics import WorkerMetrics
from worker.preview import PreviewKeeper
from worker.progress import ProgressReporter, RunCanceled, RunFenced, RunPutBack
from worker.pulse import Pulse
from worker.upscaler import Upscaler

# How long the end of a run waits for Redis to come back before it is given up; the work is done by then.
PUBLISH_WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass
class StopFlag:
    """What the signals asked for: to take no more jobs, and to put the running one back."""

    is_stopping: bool = False
    is_put_back_asked: bool = False


@dataclass(frozen=True)
class JobRunner:
    """Runs the jobs of one profile with its preloaded networks. worker_id: told in the lease as its holder."""

    settings: Settings
    store: JobStore
    queue: JobQueue
    blobs: BlobStore
    profile: str
    upscaler: Upscaler
    metrics: WorkerMetrics
    stop: StopFlag = field(default_factory=StopFlag)
    worker_id: str = ""
    pulse: Pulse = field(default_factory=lambda: Pulse(None))
    sleep: Callable[[float], None] = time.sleep

    def run_next(self, called_for: str = "") -> None:
        """Run the job that is next in line to its end, or put it back. called_for: told in the log when none waits.

        Raises the connection errors of redis-py when Redis stays away.
        """
        attempt_id = uuid.uuid4().hex
        record = self.store.begin_next(
            self.profile, attempt_id, holder=self.worker_id, lease_seconds=self.settings.lease_seconds
        )
        if record is None:  # canceled while it waited, deleted, or run by another call
            log.info("nothing_to_run", called_for=called_for)
            return
        with structlog.contextvars.bound_contextvars(job_id=record.id, attempt_id=attempt_id):
            log.info("job_started", profile=record.profile, attempt=record.attempts)
            with self.metrics.busy.track_inprogress(), self._lease(record, attempt_id) as lease:
                self._run_attempt(record, attempt_id, lease)

    def _lease(self, record: JobRecord, attempt_id: str) -> LeaseKeeper:
        return LeaseKeeper(
            self.store,
            record.id,
            attempt_id,
            lease_seconds=self.settings.lease_seconds,
            stall_seconds=self.settings.stall_seconds,
            pulse=self.pulse,
        )

    def _run_attempt(self, record: JobRecord, attempt_id: str, lease: LeaseKeeper) -> None:
        started = time.monotonic()
        try:
            outcome = self._produce(record, attempt_id, lease)
            status = JobStatus.SUCCEEDED
        except RunPutBack:
            is_released = self._persist(lambda: self.store.release(record.id, attempt_id))
            log.info("job_put_back", is_released=is_released)
            if is_released:
                self._persist(lambda: self.queue.enqueue(record))
            self._sweep(record, attempt_id)  # its preview
            return
        except RunFenced:
            log.warning("job_fenced")  # another attempt holds it, or it was deleted: nothing to say about it
            self._sweep(record, attempt_id)
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
        if not is_published or record.attempts > 1 or record.replays:
            self._sweep(record, attempt_id)
        log.info(
            "job_ended",
            status=status.value,
            reason=outcome.error.code if outcome.error else "",
            detail=outcome.error.detail if outcome.error else "",
            is_published=is_published,
            seconds=round(time.monotonic() - started, 3),
        )

    def _produce(self, record: JobRecord, attempt_id: str, lease: LeaseKeeper) -> JobOutcome:
        """The outcome of a successful run, its files stored."""
        request, timings = record.options, dict[str, float]()
        reporter = ProgressReporter(
            self.store,
            record.id,
            attempt_id,
            self.metrics,
            on_progress=lease.touch,
            must_put_back=lambda: self.stop.is_put_back_asked,
        )
        with _timed(timings, "decode"):
            source = self._read_input(record)
        height, width = source.pixels.shape[:2]
        options = results.upscale_options(request, width, height)
        with PreviewKeeper(self.store, self.blobs, record.id, attempt_id) as preview:
            result = self.upscaler.upscale(source.pixels, options, on_progress=reporter, on_preview=preview)
        timings |= result.timings
        with _timed(timings, "maps"):
            maps = results.render_maps(result) if request.maps else {}
        with _timed(timings, "encode"):
            image = results.encode(result, request, source)
        # A last look, so that a late run does not store what nobody will read.
        reporter.report("publish", 0, 1, 1.0)
        with _timed(timings, "store"):
            self._put_files(record.id, attempt_id, image, CONTENT_TYPES[request.output_format], maps)
        return results.build_outcome(result, request, image, maps, timings, self.upscaler.describe())

    def _read_input(self, record: JobRecord) -> Any:
        data = self.blobs.get(input_key(record.id))
        if data is None:
            raise JobError("storage-unavailable", "The uploaded image is no longer in the storage.")
        return results.decode(data, self.settings.max_input_pixels)

    def _put_files(
        self, job_id: str, attempt_id: str, image: bytes, content_type: str, maps: dict[str, results.RenderedMap]
    ) -> None:
        files: list[tuple[str, bytes, str | None]] = [(result_key(job_id, attempt_id), image, content_type)]
        files += [(map_key(job_id, attempt_id, name, "png"), rendered.png, None) for name, rendered in maps.items()]
        files += [(map_key(job_id, attempt_id, name, "npy"), rendered.npy, None) for name, rendered in maps.items()]
        # At once: each is a round trip to an object store, and nobody reads one before the record names them all.
        with ThreadPoolExecutor(len(files)) as senders:
            list(senders.map(lambda file: self.blobs.put(*file), files))

    def _persist(self, write: Callable[[], T]) -> T:
        """Do `write`, waiting for a Redis that is away: minutes of work hang on this one call."""
        for seconds in PUBLISH_WAITS_SECONDS:
            try:
                return write()
            except REDIS_AWAY as error:
                log.warning("redis_away", reason=str(error), retry_seconds=seconds)
                self.sleep(seconds)
        return write()

    def _sweep(self, record: JobRecord, attempt_id: str) -> None:
        """Delete the files that nobody will read: of a deleted job all, of a late run its own, else of dead runs."""
        try:
            now = self.store.get(record.id)
            if now is None:
                self.blobs.delete_prefix(record.id)
            elif now.attempt_id != attempt_id or not now.status.is_final:
                self.blobs.delete_prefix(record.id, attempt_id)
            else:
                runs = {key.split("/")[1] for key in self.blobs.keys(record.id) if key.count("/") > 1}
                for other in runs - {attempt_id}:
                    self.blobs.delete_prefix(record.id, other)
        except JobError as error:
            log.warning("sweep_failed", reason=error.detail)
        except REDIS_AWAY as error:
            log.warning("sweep_failed", reason=str(error))

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
