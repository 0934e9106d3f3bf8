"""The queue: what travels through RQ, and who waits where."""

import json
import zlib

import pytest

from jobs import HeartbeatRegistry, JobQueue, JobStatus, JobStore, WorkerHeartbeat, queue_name
from jobs.record import JobOutcome, utc
from tests.fakes import FakeClock, a_job


@pytest.fixture
def clock():
    return FakeClock()


def test_only_the_id_travels_as_json_under_one_function_name(redis):
    record = JobStore(redis).create(a_job(), max_queue_length=9)
    JobQueue(redis, job_timeout_seconds=77).enqueue(record)
    [dispatch] = redis.lrange("rq:queue:m3esr:compact", 0, -1)
    assert dispatch.decode().startswith(record.id + "-")
    held = redis.hgetall(f"rq:job:{dispatch.decode()}")
    assert json.loads(zlib.decompress(held[b"data"])) == ["worker.tasks.upscale", None, [record.id], {}]
    assert (held[b"timeout"], held[b"result_ttl"], held[b"failure_ttl"]) == (b"77", b"0", b"600")


def test_queue_names_are_one_per_profile():
    assert queue_name("compact") == "m3esr:compact"


def test_depth_and_age_are_those_of_the_line(redis, clock):
    store, queue = JobStore(redis, clock=clock), JobQueue(redis, clock=clock)
    assert (queue.depth("compact"), queue.oldest_age_seconds("compact")) == (0, 0.0)
    first = store.create(a_job(), max_queue_length=9)
    clock.now += 10
    store.create(a_job(), max_queue_length=9)
    clock.now += 5
    assert (queue.depth("compact"), queue.oldest_age_seconds("compact")) == (2, 15.0)
    store.begin_attempt(first.id, "a")
    assert (queue.depth("compact"), queue.oldest_age_seconds("compact")) == (1, 5.0)
    assert queue.position(first) is None


def test_the_eta_follows_the_last_runs_and_the_number_of_workers(redis, clock):
    store, queue = JobStore(redis, clock=clock), JobQueue(redis, clock=clock)
    waiting = store.create(a_job(), max_queue_length=9)
    assert queue.eta_seconds(waiting, 0, 1) is None
    for seconds in (2, 4):
        record = store.create(a_job(), max_queue_length=9)
        store.begin_attempt(record.id, "a")
        clock.now += seconds
        store.finish(record.id, "a", JobStatus.SUCCEEDED, JobOutcome())
    assert queue.eta_seconds(waiting, 0, 1) == 3.0
    assert queue.eta_seconds(waiting, 3, 1) == 12.0
    assert queue.eta_seconds(waiting, 3, 2) == 6.0
    assert queue.eta_seconds(waiting, 0, 0) is None


def beat(worker_id, *, is_ready=True):
    return WorkerHeartbeat(
        id=worker_id, profiles=("compact",), is_ready=is_ready, device="cpu", since=utc(1_800_000_000)
    )


def test_a_worker_is_counted_while_it_beats(redis, clock):
    heartbeats = HeartbeatRegistry(redis, clock=clock)
    assert heartbeats.workers() == []
    heartbeats.beat(beat("one"), ttl_seconds=15)
    heartbeats.beat(beat("two", is_ready=False), ttl_seconds=15)
    assert {worker.id for worker in heartbeats.workers()} == {"one", "two"}
    assert [worker.id for worker in heartbeats.ready("compact")] == ["one"]
    assert heartbeats.ready("quality") == []
    clock.now += 16
    assert heartbeats.workers() == []


def test_a_worker_that_leaves_is_gone_at_once(redis):
    heartbeats = HeartbeatRegistry(redis)
    heartbeats.beat(beat("one"), ttl_seconds=15)
    heartbeats.leave("one")
    assert heartbeats.workers() == []
