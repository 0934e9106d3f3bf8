"""Who runs next: priorities among an owner's own jobs, turns between owners, and places that tell the true order."""

import asyncio
import random

import pytest

from jobs import JobError, JobPolls, JobQueue, JobStore, Recovery, connect_async
from jobs.keys import line_key, turns_key, waiting_key
from tests.fakes import FakeClock, a_job


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


@pytest.fixture
def queue(redis):
    return JobQueue(redis)


def wait(store, owner="", priority="normal", max_queue_length=10_000):
    job = a_job(priority=priority).model_copy(update={"owner": owner})
    return store.create(job, max_queue_length=max_queue_length)


def run_all(store):
    """Owners or ids in the order in which workers get the jobs."""
    begun = []
    while (record := store.begin_next("compact", f"run-{len(begun)}")) is not None:
        begun.append(record)
    return begun


def test_one_callers_thousand_jobs_hold_anothers_single_job_up_by_one(store, queue):
    for _ in range(1000):
        wait(store, "many")
    single = wait(store, "few")
    assert queue.position(single) == 1
    store.begin_next("compact", "a")
    assert queue.position(single) == 0
    assert store.begin_next("compact", "b").id == single.id


def test_owners_take_turns_and_each_owners_jobs_keep_their_order(store):
    jobs = {owner: [wait(store, owner).id for _ in range(count)] for owner, count in (("a", 4), ("", 2), ("b", 1))}
    begun = run_all(store)
    assert [record.owner for record in begun] == ["a", "", "b", "a", "", "a", "a"]
    for owner, ids in jobs.items():
        assert [record.id for record in begun if record.owner == owner] == ids


def test_a_priority_passes_the_owners_own_jobs_and_nobody_elses(store):
    low, normal = wait(store, "a", "low"), wait(store, "a")
    others = [wait(store, "b"), wait(store, "b")]
    high, later = wait(store, "a", "high"), wait(store, "a", "high")
    expected = [high, others[0], later, others[1], normal, low]
    assert [record.id for record in run_all(store)] == [record.id for record in expected]


def test_who_comes_back_with_single_jobs_waits_one_round_each_time(store):
    for owner in "aabb":
        wait(store, owner)
    wait(store, "c")
    assert [store.begin_next("compact", "x").owner for _ in range(3)] == ["a", "b", "c"]
    wait(store, "c")
    assert [record.owner for record in run_all(store)] == ["a", "b", "c"]


@pytest.mark.parametrize("way", ["release", "reclaim"])
def test_a_job_that_comes_back_is_next_whatever_came_meanwhile(redis, store, queue, clock, way):
    jobs = [wait(store, owner) for owner in ("a", "a", "b", "c")]
    begun = store.begin_next("compact", "dies", lease_seconds=15)
    assert begun.id == jobs[0].id
    jobs.append(wait(store, "a", "high"))
    if way == "release":
        assert store.release(begun.id, "dies")
    else:
        clock.now += 16
        Recovery(redis, store, queue, max_attempts=3, clock=clock).reclaim_expired()
    assert [queue.position(record) for record in jobs] == [0, 4, 1, 2, 3]
    assert store.begin_next("compact", "again").id == begun.id


@pytest.mark.parametrize("seed", range(8))
def test_places_tell_the_order_in_which_jobs_run(redis_url, store, queue, seed):
    chance, waiting = random.Random(seed), []
    for _ in range(60):
        move = chance.random()
        if move < 0.7:
            waiting.append(wait(store, chance.choice(["", "a", "b", "c"]), chance.choice(["low", "normal", "high"])))
        elif move < 0.8 and waiting:
            store.request_cancel(waiting.pop(chance.randrange(len(waiting))).id)
        elif waiting and (begun := store.begin_next("compact", "x")):
            waiting = [record for record in waiting if record.id != begun.id]
            if chance.random() < 0.3 and store.release(begun.id, "x"):
                waiting.append(begun)
    told = {record.id: queue.position(record) for record in waiting}
    assert sorted(told.values()) == list(range(len(waiting)))
    assert asyncio.run(poll_all(redis_url, told)) == told
    assert [record.id for record in run_all(store)] == sorted(told, key=told.__getitem__)


async def poll_all(redis_url, job_ids):
    polls = JobPolls(connect_async(redis_url))
    answers = {job_id: (await polls.ask(job_id, None)).position for job_id in job_ids}
    await polls.close()
    return answers


def test_a_full_line_still_takes_the_first_job_of_somebody_else(store, queue):
    for _ in range(3):
        wait(store, "many", max_queue_length=3)
    for owner, num_jobs, has_room in (("many", 1, False), ("few", 1, True), ("few", 2, False), ("", 1, True)):
        assert queue.has_room("compact", owner, num_jobs, 3) == has_room
    with pytest.raises(JobError, match="queue-full"):
        wait(store, "many", max_queue_length=3)
    wait(store, "few", max_queue_length=3)
    with pytest.raises(JobError, match="queue-full"):
        wait(store, "few", max_queue_length=3)


def test_an_empty_line_leaves_nothing_behind(redis, store):
    for owner in ("a", "", "b"):
        wait(store, owner)
    store.request_cancel(wait(store, "c").id)
    store.delete(wait(store, "d").id, force=True)
    run_all(store)
    names = [waiting_key("compact"), turns_key("compact"), *(line_key("compact", owner) for owner in ("", *"abcd"))]
    assert redis.exists(*names) == 0


def test_jobs_that_an_older_version_put_in_line_run_after_the_others(redis, store):
    old, new = wait(store), wait(store)
    redis.delete(turns_key("compact"), line_key("compact", ""))
    newest = wait(store)
    assert [record.id for record in run_all(store)] == [newest.id, old.id, new.id]


def test_what_is_in_line_without_a_record_holds_nobody_up(redis, store):
    gone, waits = wait(store, "a"), wait(store, "b")
    redis.delete(f"m3esr:job:{gone.id}")
    assert [record.id for record in run_all(store)] == [waits.id]
    assert redis.exists(waiting_key("compact"), turns_key("compact"), line_key("compact", "a")) == 0
