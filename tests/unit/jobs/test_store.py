"""The job's life in Redis: who may change what, and when."""

import pytest

from jobs import ErrorInfo, JobError, JobOutcome, JobQueue, JobStatus, JobStore, Progress, Recovery, Signal
from tests.fakes import FakeClock, a_job

SUCCESS = JobOutcome(caption="a boat", timings={"coarse": 0.5})


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


@pytest.fixture
def queue(redis, clock):
    return JobQueue(redis, clock=clock)


def create(store, **options):
    return store.create(a_job(**options), max_queue_length=100)


def test_a_new_job_is_queued_and_reads_back_as_it_was_made(store):
    job = a_job(width=32, prompt="a boat")
    record = store.create(job, max_queue_length=1)
    assert record == store.get(job.id)
    assert (record.status, record.options, record.input) == (JobStatus.QUEUED, job.options, job.input)
    assert (record.attempts, record.finished_at, record.expires_at) == (0, None, None)


def test_an_id_is_used_once(store):
    job = a_job()
    store.create(job, max_queue_length=9)
    with pytest.raises(ValueError, match="taken"):
        store.create(job, max_queue_length=9)


def test_a_full_queue_takes_no_more_and_says_when_to_come_back(store):
    create(store)
    with pytest.raises(JobError) as raised:
        store.create(a_job(), max_queue_length=1)
    assert (raised.value.code, raised.value.status) == ("queue-full", 429)
    assert raised.value.retry_after_seconds > 0


def test_what_is_no_id_never_reaches_redis(store):
    assert store.get("../../etc/passwd") is None
    with pytest.raises(JobError, match="job-not-found"):
        store.require("nobody")


def test_one_attempt_runs_a_job_to_its_end(store, clock):
    job_id = create(store).id
    clock.now += 5
    record = store.begin_attempt(job_id, "a")
    assert (record.status, record.attempts, record.attempt_id) == (JobStatus.RUNNING, 1, "a")
    progress = Progress(stage="denoising", step=1, num_steps=4, fraction=0.4)
    assert store.report_progress(job_id, "a", progress) is Signal.CONTINUE
    assert store.get(job_id).progress == progress
    clock.now += 7
    assert store.finish(job_id, "a", JobStatus.SUCCEEDED, SUCCESS)
    ended = store.get(job_id)
    assert (ended.status, ended.outcome) == (JobStatus.SUCCEEDED, SUCCESS)
    assert (ended.finished_at - ended.started_at).total_seconds() == 7
    assert (ended.expires_at - ended.finished_at).total_seconds() == 3600


def test_a_running_job_is_taken_by_no_other_attempt_whatever_its_lease(store, clock):
    job_id = create(store).id
    store.begin_attempt(job_id, "a", lease_seconds=15)
    for seconds in (14, 14):
        clock.now += seconds
        assert store.begin_attempt(job_id, "b") is None
        assert store.renew_lease(job_id, "a", lease_seconds=15)
    clock.now += 60
    assert store.begin_attempt(job_id, "b") is None  # the reaper's to take back, which counts attempts


def test_a_late_attempt_changes_nothing(redis, store, queue, clock):
    job_id = create(store).id
    store.begin_attempt(job_id, "late")
    clock.now += 16
    Recovery(redis, store, queue, max_attempts=3, clock=clock).reclaim(job_id)
    store.begin_attempt(job_id, "new")
    before = store.get(job_id)
    assert before.attempts == 2
    assert store.report_progress(job_id, "late", Progress(stage="coarse")) is Signal.FENCED
    assert not store.finish(job_id, "late", JobStatus.SUCCEEDED, SUCCESS)
    assert not store.release(job_id, "late")
    assert not store.renew_lease(job_id, "late")
    assert store.get(job_id) == before


def test_a_final_job_never_goes_back(store):
    job_id = create(store).id
    store.begin_attempt(job_id, "a")
    store.finish(job_id, "a", JobStatus.SUCCEEDED, SUCCESS)
    before = store.get(job_id)
    assert store.begin_attempt(job_id, "b") is None
    assert not store.finish(job_id, "a", JobStatus.FAILED, JobOutcome())
    assert not store.release(job_id, "a")
    assert store.request_cancel(job_id) == before
    assert store.counters() == {("compact", "succeeded", ""): 1}


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.EXPIRED])
def test_a_run_ends_only_in_a_final_state_of_its_own(store, status):
    with pytest.raises(ValueError, match="cannot end"):
        store.finish(create(store).id, "a", status, JobOutcome())


def test_a_failure_keeps_its_reason_and_is_counted_by_it(store):
    job_id = create(store).id
    store.begin_attempt(job_id, "a")
    error = JobError("out-of-memory", "The tile of 512 px needs 9 GB.")
    assert store.fail(job_id, "a", error)
    assert store.get(job_id).outcome.error == ErrorInfo.of(error)
    assert store.counters() == {("compact", "failed", "out-of-memory"): 1}


def test_canceling_a_queued_job_ends_it_and_frees_its_place(store, queue):
    first, second = create(store), create(store)
    assert store.request_cancel(first.id).status is JobStatus.CANCELED
    assert queue.position(second) == 0
    assert store.begin_attempt(first.id, "a") is None


def test_canceling_a_running_job_is_told_at_its_next_step(store):
    job_id = create(store).id
    store.begin_attempt(job_id, "a")
    record = store.request_cancel(job_id)
    assert (record.status, record.is_cancel_requested) == (JobStatus.RUNNING, True)
    assert store.request_cancel(job_id) == record  # asking twice is asking once
    assert store.is_cancel_requested(job_id)
    assert store.report_progress(job_id, "a", Progress(stage="coarse")) is Signal.CANCEL
    assert store.finish(job_id, "a", JobStatus.CANCELED, JobOutcome())


def test_a_released_job_waits_again_at_its_old_place(store, queue):
    first, second = create(store), create(store)
    store.begin_attempt(first.id, "a")
    assert queue.position(second) == 0
    assert store.release(first.id, "a")
    released = store.get(first.id)
    assert (released.status, released.attempt_id, released.started_at) == (JobStatus.QUEUED, None, None)
    assert released.attempts == 0  # nothing was wrong with the job
    assert [queue.position(job) for job in (first, second)] == [0, 1]


def test_every_change_makes_the_version_grow(store):
    versions = [(record := create(store)).version]
    store.begin_attempt(record.id, "a")
    versions.append(store.get(record.id).version)
    store.report_progress(record.id, "a", Progress(stage="coarse"))
    versions.append(store.get(record.id).version)
    store.finish(record.id, "a", JobStatus.SUCCEEDED, SUCCESS)
    versions.append(store.get(record.id).version)
    assert versions == sorted(set(versions))


def test_only_a_final_job_is_deleted_unless_forced(store):
    job_id, other_id = create(store).id, create(store).id
    assert not store.delete(job_id)
    store.request_cancel(job_id)
    assert store.delete(job_id)
    assert not store.delete(job_id)
    assert store.delete(other_id, force=True)
    assert store.list_jobs(limit=9) == []


def test_jobs_are_listed_newest_first_page_by_page(store):
    ids = [create(store).id for _ in range(5)]
    page = store.list_jobs(limit=2)
    rest = store.list_jobs(limit=9, before=page[-1].sequence)
    assert [record.id for record in (*page, *rest)] == ids[::-1]
    assert store.num_accepted() == 5


def test_a_job_expires_when_its_time_is_over_and_not_before(store, clock):
    record = create(store)
    store.begin_attempt(record.id, "a")
    store.finish(record.id, "a", JobStatus.SUCCEEDED, SUCCESS)
    assert store.due() == []
    assert not store.expire(record.id)
    clock.now += 3601
    assert store.due() == [record.id]
    assert store.expire(record.id)
    assert store.get(record.id).status is JobStatus.EXPIRED
    assert (store.due(), store.list_jobs(limit=9)) == ([], [])


def test_a_job_nobody_ran_is_given_up_and_leaves_the_line(store, queue, clock):
    record = create(store)
    clock.now += 8 * 86_400
    assert store.due() == [record.id]
    assert store.expire(record.id)
    assert queue.depth("compact") == 0
    assert store.begin_attempt(record.id, "late") is None


def test_a_number_json_cannot_carry_is_refused_at_the_door():
    with pytest.raises(ValueError, match="finite"):
        JobOutcome(timings={"coarse": 1.0}, temperatures={"sigma": [float("inf")]})
