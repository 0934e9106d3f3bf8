"""Jobs are brought back: from leases that ran out, workers that died, and dispatches that were lost."""

import pytest

from jobs import JobOutcome, JobQueue, JobStatus, JobStore, Recovery, Signal
from jobs.record import Progress
from tests.fakes import FakeClock, a_job

QUEUE = "rq:queue:m3esr:compact"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


@pytest.fixture
def queue(redis, clock):
    return JobQueue(redis, clock=clock)


@pytest.fixture
def recovery(redis, store, queue, clock):
    return Recovery(redis, store, queue, max_attempts=3, clock=clock)


@pytest.fixture
def running(redis, store, queue):
    """A job that a worker took off the queue and runs."""
    record = store.create(a_job(), max_queue_length=9)
    queue.enqueue(record)
    redis.lpop(QUEUE)
    return store.begin_attempt(record.id, "first", holder="host-1-a", lease_seconds=15)


def dispatched(redis):
    return [raw.decode().rpartition("-")[0] for raw in redis.lrange(QUEUE, 0, -1)]


def test_a_lease_that_holds_is_left_alone(recovery, running, clock, store):
    clock.now += 14
    assert recovery.reclaim_expired() == {}
    assert recovery.reclaim(running.id) == "held"
    assert store.get(running.id) == running


def test_a_job_whose_lease_ran_out_waits_again_as_the_next_to_run(redis, recovery, running, clock, store, queue):
    store.create(a_job(), max_queue_length=9)
    clock.now += 16
    assert recovery.reclaim_expired() == {running.id: "queued"}
    record = store.get(running.id)
    assert (record.status, record.attempts, record.attempt_id) == (JobStatus.QUEUED, 1, None)
    assert queue.position(record) == 0
    assert dispatched(redis) == [running.id]
    assert store.report_progress(running.id, "first", Progress(stage="coarse")) is Signal.FENCED
    assert not store.finish(running.id, "first", JobStatus.SUCCEEDED, JobOutcome())
    assert store.recoveries() == {"lease_expired": 1}
    assert recovery.reclaim_expired() == {}


def test_a_job_that_kills_every_worker_fails_with_the_reason_after_max_attempts(recovery, running, clock, store):
    for attempt in ("second", "third"):
        clock.now += 16
        assert recovery.reclaim_expired() == {running.id: "queued"}
        store.begin_attempt(running.id, attempt)
    clock.now += 16
    assert recovery.reclaim_expired() == {running.id: "failed"}
    record = store.get(running.id)
    assert (record.status, record.attempts, record.outcome.error.code) == (JobStatus.FAILED, 3, "worker-lost")
    assert "3 workers" in record.outcome.error.detail
    assert (record.expires_at - record.finished_at).total_seconds() == record.ttl_seconds
    assert store.counters() == {("compact", "failed", "worker-lost"): 1}


def test_a_canceled_job_whose_worker_died_is_canceled_and_not_run_again(redis, recovery, running, clock, store):
    store.request_cancel(running.id)
    clock.now += 16
    assert recovery.reclaim_expired() == {running.id: "canceled"}
    assert store.get(running.id).status is JobStatus.CANCELED
    assert dispatched(redis) == []


def test_the_leases_of_a_dead_worker_end_at_once_and_those_of_others_hold(recovery, running, store, queue):
    other = store.create(a_job(), max_queue_length=9)
    store.begin_attempt(other.id, "other", holder="host-2-b")
    assert recovery.end_leases_of("host-1-a") == [running.id]
    assert recovery.reclaim_expired() == {running.id: "queued"}
    assert store.get(other.id).status is JobStatus.RUNNING
    assert store.recoveries() == {"worker_died": 1}


def test_a_finished_job_leaves_no_lease(recovery, running, clock, store):
    store.finish(running.id, "first", JobStatus.SUCCEEDED, JobOutcome())
    clock.now += 99
    assert recovery.reclaim_expired() == {}
    assert store.get(running.id).status is JobStatus.SUCCEEDED


def test_a_waiting_job_that_no_list_holds_is_dispatched_again(redis, recovery, store, clock):
    record = store.create(a_job(), max_queue_length=9)  # the service died before it could enqueue it
    assert recovery.dispatch_lost("compact") == 0
    clock.now += 4
    assert recovery.dispatch_lost("compact") == 0
    clock.now += 2
    assert recovery.dispatch_lost("compact") == 1
    assert dispatched(redis) == [record.id]
    clock.now += 60
    assert recovery.dispatch_lost("compact") == 0


def test_only_as_many_workers_are_called_as_were_missing_all_the_time(redis, recovery, store, queue, clock):
    for _ in range(2):
        store.create(a_job(), max_queue_length=9)
    recovery.dispatch_lost("compact")
    clock.now += 3
    late = store.create(a_job(), max_queue_length=9)  # is being dispatched at this moment
    recovery.dispatch_lost("compact")
    clock.now += 3
    assert recovery.dispatch_lost("compact") == 2
    queue.enqueue(late)
    assert redis.llen(QUEUE) == 3
    assert store.recoveries() == {"dispatch_lost": 2}


def test_a_job_whose_worker_died_before_registering_it_is_dispatched_again(redis, recovery, store, queue, clock):
    record = store.create(a_job(), max_queue_length=9)
    queue.enqueue(record)
    redis.lmove(QUEUE, f"{QUEUE}:intermediate", "LEFT", "RIGHT")
    recovery.dispatch_lost("compact")
    clock.now += 6
    assert recovery.dispatch_lost("compact") == 1
    assert dispatched(redis) == [record.id]
    assert redis.llen(f"{QUEUE}:intermediate") == 0


def test_looking_at_one_profile_does_not_forget_another(recovery, store, clock):
    store.create(a_job(), max_queue_length=9)
    recovery.dispatch_lost("compact")
    clock.now += 6
    recovery.dispatch_lost("quality")
    assert recovery.dispatch_lost("compact") == 1
