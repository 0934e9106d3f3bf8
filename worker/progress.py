"""Progress of a run: throttled reports to the job's record, and the stops that come back with them."""

import time
from collections.abc import Callable

import structlog

from jobs import REDIS_AWAY, JobStore, Progress, Signal
from worker.metrics import WorkerMetrics
from worker.upscaler import ProgressEvent

REPORT_SECONDS = 0.25
log = structlog.get_logger(__name__)


class RunCanceled(Exception):
    """The caller asked for the end of this run."""


class RunFenced(Exception):
    """Another attempt holds the job (or it is gone): stop and publish nothing."""


class RunPutBack(Exception):
    """This worker must end now: the job goes back to the queue."""


class ProgressReporter:
    """Called by the network at each step; raises RunCanceled, RunFenced or RunPutBack between steps.

    on_progress: called at each step. must_put_back: asked at each step. clock: seconds, never going back.
    """

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        attempt_id: str,
        metrics: WorkerMetrics,
        *,
        on_progress: Callable[[], None] = lambda: None,
        must_put_back: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._attempt_id = attempt_id
        self._metrics = metrics
        self._on_progress = on_progress
        self._must_put_back = must_put_back
        self._clock = clock
        self._stage = ""
        self._reported_at = float("-inf")
        self._last_step: tuple[str, int, float] | None = None

    def __call__(self, event: ProgressEvent) -> None:
        """Take one step of the network."""
        now = self._clock()
        self._on_progress()
        self._measure_step(event, now)
        if self._must_put_back():
            raise RunPutBack
        if event.stage == self._stage and now - self._reported_at < REPORT_SECONDS:
            return
        self._stage, self._reported_at = event.stage, now
        self.report(event.stage, event.step, event.num_steps, event.fraction)

    def report(self, stage: str, step: int, num_steps: int, fraction: float) -> None:
        """Tell the record at once, and stop when it says so."""
        self._on_progress()
        progress = Progress(stage=stage, step=step, num_steps=num_steps, fraction=min(max(fraction, 0.0), 1.0))
        try:
            signal = self._store.report_progress(self._job_id, self._attempt_id, progress)
        except REDIS_AWAY as error:
            # The picture is worth more than its progress bar: go on, the end of the run waits for Redis.
            log.warning("progress_lost", reason=str(error))
            return
        if signal is Signal.CANCEL:
            raise RunCanceled
        if signal is Signal.FENCED:
            raise RunFenced

    def _measure_step(self, event: ProgressEvent, now: float) -> None:
        last, self._last_step = self._last_step, (event.stage, event.step, now)
        if last and event.stage == last[0] == "denoising" and event.step > last[1]:
            self._metrics.step_seconds.observe((now - last[2]) / (event.step - last[1]))
