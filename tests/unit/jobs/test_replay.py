"""Replay and batches in Redis: what may live again, and what is accepted together."""

import pytest

from jobs import Batch, BatchStore, JobError, JobOutcome, JobQueue, JobStatus, JobStore, PreviewInfo, Progress, Signal
from jobs.keys import COUNTERS, EXPIRY, OUTBOX, batch_key, job_key, webhook_key
from jobs.record import utc
from jobs.store import BATCH_SECONDS, GIVE_UP_SECONDS
from tests.fakes import FakeClock, a_job

PREVIEW = PreviewInfo(width=64, height=48, fraction=0.5)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


@pytest.fixture
def queue(redis, clock):
    return JobQueue(redis, clock=clock)


def fail(store, **options):
    record = store.create(a_job(**options), max_queue_length=99)
    store.begin_attempt(record.id, "first", holder="host")
    store.report_progress(record.id, "first", Progress(stage="denoising", fraction=0.5))
    store.report_preview(record.id, "first", PREVIEW)
    store.fail(record.id, "first", JobError("timed-out", "Too slow."))
    return store.require(record.id)


def refusal(store, job_id, max_queue_length=99):
    with pytest.raises(JobError) as raised:
        store.replay(job_id, max_queue_length=max_queue_length)
    return raised.value.code


def test_a_failed_job_waits_again_as_if_it_had_just_come(store, queue, clock, redis):
    failed = fail(store)
    assert (failed.outcome.error.code, failed.preview) == ("timed-out", PREVIEW)
    other = store.create(a_job(), max_queue_length=9)
    clock.now += 60
    record = store.replay(failed.id, max_queue_length=9)
    assert (record.status, record.attempts, record.replays) == (JobStatus.QUEUED, 0, 1)
    assert (record.created_at, record.replayed_at) == (failed.created_at, utc(clock.now))
    assert record.version > failed.version and record.sequence > other.sequence
    gone = (record.outcome.error, record.attempt_id, record.holder, record.progress, record.preview)
    assert gone == (None,) * 5
    assert (record.started_at, record.finished_at, record.expires_at) == (None, None, None)
    assert queue.position(record) == 1
    assert [listed.id for listed in store.list_jobs(limit=9)] == [record.id, other.id]
    assert redis.zscore(EXPIRY, record.id) == clock.now + GIVE_UP_SECONDS  # not swept at its old time
    assert float(redis.hget(job_key(record.id), "expires_at")) == clock.now + GIVE_UP_SECONDS


def test_the_age_of_the_line_counts_from_the_replay(store, queue, clock):
    failed = fail(store)
    clock.now += 3000
    store.replay(failed.id, max_queue_length=9)
    clock.now += 5
    assert queue.oldest_age_seconds("compact") == 5


def test_a_job_told_to_stop_is_not_told_so_in_its_next_life(store):
    record = store.create(a_job(), max_queue_length=9)
    store.begin_attempt(record.id, "first")
    store.request_cancel(record.id)
    store.finish(record.id, "first", JobStatus.CANCELED, JobOutcome())
    assert not store.replay(record.id, max_queue_length=9).is_cancel_requested
    store.begin_attempt(record.id, "second")
    assert store.report_progress(record.id, "second", Progress(stage="coarse")) is Signal.CONTINUE


def test_a_late_run_of_the_first_life_changes_nothing_in_the_second(store):
    failed = fail(store)
    store.replay(failed.id, max_queue_length=9)
    for _ in range(2):  # while it waits, and while it runs
        before = store.require(failed.id)
        assert not store.report_preview(failed.id, "first", PREVIEW)
        assert not store.finish(failed.id, "first", JobStatus.SUCCEEDED, JobOutcome())
        assert not store.release(failed.id, "first")
        assert store.require(failed.id) == before
        store.begin_attempt(failed.id, "second")


def test_both_ends_are_counted_and_both_starts(store, redis):
    failed = fail(store)
    store.replay(failed.id, max_queue_length=9)
    store.begin_attempt(failed.id, "second")
    store.finish(failed.id, "second", JobStatus.SUCCEEDED, JobOutcome())
    assert store.counters() == {("compact", "failed", "timed-out"): 1, ("compact", "succeeded", ""): 1}
    assert store.num_accepted() == 2 == sum(int(count) for count in redis.hvals(COUNTERS))


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED])
def test_only_what_failed_or_was_canceled_is_replayed(store, status):
    record = store.create(a_job(), max_queue_length=9)
    if status is not JobStatus.QUEUED:
        store.begin_attempt(record.id, "a")
    if status is JobStatus.SUCCEEDED:
        store.finish(record.id, "a", status, JobOutcome())
    before = store.require(record.id)
    assert refusal(store, record.id) == "job-not-replayable"
    assert store.require(record.id) == before


def test_a_job_whose_time_is_over_is_not_replayed_before_the_sweep_nor_after(store, clock):
    failed = fail(store)
    clock.now += failed.ttl_seconds
    assert refusal(store, failed.id) == "job-expired"
    store.expire(failed.id)
    assert refusal(store, failed.id) == "job-expired"
    assert refusal(store, "0123") == "job-not-found"


def test_a_full_queue_takes_no_replay(store):
    failed = fail(store)
    store.create(a_job(), max_queue_length=9)
    assert refusal(store, failed.id, max_queue_length=1) == "queue-full"
    assert store.require(failed.id) == failed


def test_the_webhook_of_the_last_end_goes_and_the_new_end_is_told_as_another(store, redis):
    failed = fail(store, webhook_url="https://example.org/")
    assert redis.zscore(OUTBOX, failed.id) is not None
    store.replay(failed.id, max_queue_length=9)
    assert (redis.zscore(OUTBOX, failed.id), redis.exists(webhook_key(failed.id))) == (None, 0)
    store.request_cancel(failed.id)
    assert redis.hmget(webhook_key(failed.id), "event", "replays") == [b"job.canceled", b"1"]


@pytest.mark.parametrize("end", ["release", "begin"])
def test_a_preview_is_one_of_the_run_at_hand(store, end):
    record = store.create(a_job(), max_queue_length=9)
    assert not store.report_preview(record.id, "first", PREVIEW)
    store.begin_attempt(record.id, "first")
    assert store.report_preview(record.id, "first", PREVIEW)
    assert not store.report_preview(record.id, "second", PREVIEW)
    assert store.require(record.id).preview == PREVIEW
    store.release(record.id, "first")
    if end == "begin":
        store.begin_attempt(record.id, "second")
    assert store.require(record.id).preview is None


def make_batch(num_jobs=3, **fields):
    jobs = [a_job(prompt=str(n)).model_copy(update={"batch_id": "b1", **fields}) for n in range(num_jobs)]
    return Batch(id="b1", created_at=utc(0), job_ids=tuple(job.id for job in jobs), **fields), jobs


def test_a_batch_is_accepted_in_its_order(store, queue, redis):
    batch, jobs = make_batch()
    store.create_all(jobs, max_queue_length=3, batch=batch)
    records = [store.require(job.id) for job in jobs]
    assert [queue.position(record) for record in records] == [0, 1, 2]
    assert [(record.options.prompt, record.batch_id) for record in records] == [("0", "b1"), ("1", "b1"), ("2", "b1")]
    assert BatchStore(redis).get("b1") == batch
    assert redis.ttl(batch_key("b1")) == BATCH_SECONDS + 3600


@pytest.mark.parametrize("fault", ["full", "job", "batch"])
def test_a_batch_that_cannot_be_accepted_whole_leaves_nothing(store, queue, redis, fault):
    batch, jobs = make_batch()
    if fault == "job":
        store.create(jobs[2], max_queue_length=9)
    if fault == "batch":
        store.create_all(make_batch(1)[1], max_queue_length=9, batch=batch)
    before = sorted(redis.keys("*"))
    with pytest.raises((JobError, ValueError)):
        store.create_all(jobs, max_queue_length=2 if fault == "full" else 9, batch=batch)
    assert sorted(redis.keys("*")) == before
    assert queue.depth("compact") == (0 if fault == "full" else 1)


def test_a_replay_keeps_the_batch_for_as_long_as_its_job(store, redis):
    batch, jobs = make_batch(1)
    store.create_all(jobs, max_queue_length=9, batch=batch)
    store.request_cancel(jobs[0].id)
    redis.expire(batch_key("b1"), 60)
    store.replay(jobs[0].id, max_queue_length=9)
    assert redis.ttl(batch_key("b1")) == BATCH_SECONDS + 3600


def test_a_batch_is_its_owners(store, redis):
    batch, jobs = make_batch(1, owner="alice")
    store.create_all(jobs, max_queue_length=9, batch=batch)
    batches = BatchStore(redis)
    assert batches.require_own("b1", "alice") == batch
    for batch_id, owner in [("b1", ""), ("b1", "bob"), ("b2", "alice"), ("../b1", "alice")]:
        with pytest.raises(JobError, match="batch-not-found"):
            batches.require_own(batch_id, owner)
    assert [record.id for record in store.list_jobs(limit=9, owner="alice")] == list(batch.job_ids)
