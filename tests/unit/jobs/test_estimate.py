"""Estimates: the work of an image, and the seconds that the last runs tell of it."""

import pytest

from jobs import JobError, JobOutcome, JobQueue, JobStatus, JobStore, UpscaleRequest, plan_work
from jobs.estimate import Work, expected_seconds, run_duration, write_run
from jobs.keys import durations_key
from tests.fakes import FakeClock, a_job

WORK = Work(num_regions=1, num_tiles=1, megapixels=2.0, num_passes=4)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


@pytest.fixture
def queue(redis, clock):
    return JobQueue(redis, clock=clock)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"preset": "fast"}, 0),
        ({"preset": "fast", "num_steps": 5}, 5),
        ({"num_steps": 5}, 5),
        ({"num_steps": 5, "cfg_scale": 1}, 5),
        ({"num_steps": 5, "cfg_scale": 2}, 10),
        ({"profile": "quality"}, 80),
        ({"profile": "quality", "cfg_scale": 1}, 40),
    ],
)
def test_guidance_asks_the_denoiser_twice_a_step(options, passes):
    assert plan_work(UpscaleRequest(**options), 128, 128).num_passes == passes


def test_one_region_is_what_it_makes_and_two_overlap():
    one, two = (plan_work(UpscaleRequest(), width, 128) for width in (128, 240))
    assert (one.num_regions, one.num_tiles, one.megapixels) == (1, 9, 0.262144)
    assert (two.num_regions, two.num_tiles, two.megapixels) == (2, 18, 2 * 0.262144)


def test_the_size_of_the_answer_is_no_work_of_the_networks():
    assert plan_work(UpscaleRequest(scale=2), 128, 128) == plan_work(UpscaleRequest(scale=4), 128, 128)


def test_the_seconds_of_a_run_are_those_measured_and_more_steps_cost_only_denoising():
    run = "9.9 " + write_run(WORK, {"decode": 0.5, "coarse": 1.5, "denoising": 4.0})
    assert run_duration(run) == 9.9
    assert expected_seconds(WORK, [run]) == pytest.approx(6.0)
    assert expected_seconds(Work(1, 1, 2.0, 8), [run]) == pytest.approx(10.0)
    assert expected_seconds(Work(1, 1, 4.0, 4), [run]) == pytest.approx(12.0)


def test_a_profile_without_the_preset_fast_says_so():
    with pytest.raises(JobError, match="invalid-option") as raised:
        plan_work(UpscaleRequest(profile="quality", preset="fast"), 128, 128)
    assert raised.value.field == "preset"
    assert plan_work(UpscaleRequest(profile="quality", preset="best", cfg_scale=1), 128, 128).num_passes == 40


def test_a_run_of_the_preset_fast_says_how_long_it_took_and_nothing_of_the_others():
    fast = plan_work(UpscaleRequest(preset="fast"), 128, 128)
    run = "0.3 " + write_run(fast, {"coarse": 0.2})
    assert run_duration(run) == 0.3 and expected_seconds(WORK, [run]) is None
    known = "9.9 " + write_run(WORK, {"coarse": 2.0, "denoising": 4.0})
    assert expected_seconds(fast, [run, known]) == pytest.approx(2.0 * 0.262144 / 2)


def test_large_runs_weigh_more_than_small_ones():
    small = Work(1, 1, 0.01, 1)
    runs = ["1 " + write_run(WORK, {"coarse": 2.0}), "1 " + write_run(small, {"coarse": 1.0})]
    assert expected_seconds(WORK, runs) == pytest.approx(2 * 3 / 2.01)


@pytest.mark.parametrize("runs", [[], ["12.345"]])
def test_without_a_measured_run_nothing_is_said(runs):
    assert expected_seconds(WORK, runs) is None


def test_a_run_that_succeeded_is_measured_and_one_that_failed_is_not(store, queue, clock):
    work = plan_work(UpscaleRequest(), 16, 12)
    for status, seconds in [(JobStatus.FAILED, 50), (JobStatus.SUCCEEDED, 3)]:
        record = store.create(a_job(), max_queue_length=9)
        store.begin_attempt(record.id, "a")
        clock.now += seconds
        store.finish(record.id, "a", status, JobOutcome(timings={"coarse": 1.0, "denoising": 1.5}))
    assert queue.run_seconds("compact", work) == 2.5
    assert queue.eta_seconds(record, 0, 1) == 3.0


def test_an_eta_reads_what_an_older_version_left(store, queue, redis):
    redis.lpush(durations_key("compact"), "4.000")
    record = store.create(a_job(), max_queue_length=9)
    assert queue.eta_seconds(record, 0, 1) == 4.0
    assert queue.run_seconds("compact", WORK) is None


def test_the_wait_counts_who_runs_and_who_waits(store, queue, redis):
    assert queue.wait_seconds("compact", 0) is None
    assert queue.wait_seconds("compact", 1) == 0
    running = store.create(a_job(), max_queue_length=9)
    store.begin_attempt(running.id, "a")
    assert queue.wait_seconds("compact", 1) is None
    redis.lpush(durations_key("compact"), "4.000")
    assert (queue.wait_seconds("compact", 1), queue.wait_seconds("compact", 2)) == (4.0, 0.0)
    store.create(a_job(), max_queue_length=9)
    assert (queue.wait_seconds("compact", 1), queue.wait_seconds("compact", 2)) == (8.0, 4.0)
