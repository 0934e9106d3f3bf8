"""Progress is told seldom enough, and what comes back stops the run."""

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs import Signal
from tests.unit.worker.fakes import FakeEvent
from worker.metrics import WorkerMetrics
from worker.progress import ProgressReporter, RunCanceled, RunFenced, RunPutBack


class FakeStore:
    def __init__(self, answer=Signal.CONTINUE):
        self.answer = answer
        self.told = []

    def report_progress(self, job_id, attempt_id, progress):
        if isinstance(self.answer, Exception):
            raise self.answer
        self.told.append((progress.stage, progress.step))
        return self.answer


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def reporter(store, clock=None, metrics=None, **options):
    return ProgressReporter(store, "job", "attempt", metrics or WorkerMetrics(), clock=clock or Clock(), **options)


def test_steps_closer_than_the_limit_are_told_once():
    store = FakeStore()
    report = reporter(store)
    for step in range(5):
        report(FakeEvent("denoising", step, 5, step / 5))
    assert store.told == [("denoising", 0)]


def test_a_step_after_the_limit_and_a_new_stage_are_told():
    store, clock = FakeStore(), Clock()
    report = reporter(store, clock)
    report(FakeEvent("coarse", 0, 0, 0.0))
    report(FakeEvent("denoising", 1, 4, 0.2))
    clock.now = 0.3
    report(FakeEvent("denoising", 2, 4, 0.4))
    assert store.told == [("coarse", 0), ("denoising", 1), ("denoising", 2)]


@pytest.mark.parametrize(("signal", "error"), [(Signal.CANCEL, RunCanceled), (Signal.FENCED, RunFenced)])
def test_the_answer_of_the_store_stops_the_run(signal, error):
    with pytest.raises(error):
        reporter(FakeStore(signal))(FakeEvent("coarse", 0, 0, 0.0))


def test_a_second_signal_puts_the_job_back_at_the_next_step():
    with pytest.raises(RunPutBack):
        reporter(FakeStore(), must_put_back=lambda: True)(FakeEvent("coarse", 0, 0, 0.0))


def test_a_lost_redis_does_not_end_the_run():
    reporter(FakeStore(RedisConnectionError("away")))(FakeEvent("coarse", 0, 0, 0.0))


def test_a_fraction_beyond_one_is_told_as_one():
    reporter(FakeStore())(FakeEvent("output", 1, 1, 1.0000001))


def test_seconds_per_step_are_measured_within_one_pass_over_the_steps():
    metrics, clock = WorkerMetrics(), Clock()
    report = reporter(FakeStore(), clock, metrics)
    for now, stage, step in [(0, "denoising", 0), (2, "denoising", 1), (3, "coarse", 0), (9, "denoising", 0)]:
        clock.now = now
        report(FakeEvent(stage, step, 4, 0.5))
    assert metrics.registry.get_sample_value("m3esr_denoise_step_seconds_count") == 1
    assert metrics.registry.get_sample_value("m3esr_denoise_step_seconds_sum") == 2
