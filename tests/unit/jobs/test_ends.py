"""Word of a job's end: every way to end tells it, a broken connection is made anew, and ends need no listener."""

import asyncio
import contextlib

import pytest

from jobs import JobEnds, JobError, JobOutcome, JobQueue, JobStatus, JobStore, Recovery, connect, connect_async
from tests.fakes import FakeClock, a_job


@contextlib.asynccontextmanager
async def listening(redis_url, redis):
    """Someone who listens, once Redis knows of it."""
    client = connect_async(redis_url)
    ends = JobEnds(client)
    task = asyncio.create_task(ends.listen())
    try:
        await subscribed(redis)
        yield ends
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()


async def subscribed(redis):
    async with asyncio.timeout(10):
        while not dict(redis.pubsub_numsub("m3esr:ended"))[b"m3esr:ended"]:
            await asyncio.sleep(0.01)


def finish(store, job_id):
    store.begin_attempt(job_id, "run")
    assert store.finish(job_id, "run", JobStatus.SUCCEEDED, JobOutcome())


def fail(store, job_id):
    store.begin_attempt(job_id, "run")
    assert store.fail(job_id, "run", JobError("timed-out", "Too long."))


def lose(store, job_id):
    store.begin_attempt(job_id, "run", lease_seconds=1)
    store._clock.now += 2
    recovery = Recovery(store._redis, store, JobQueue(store._redis), max_attempts=1, clock=store._clock)
    assert recovery.reclaim_expired() == {job_id: "failed"}


def expire(store, job_id):
    store._clock.now += 30 * 86_400
    assert store.expire(job_id)


@pytest.mark.parametrize("end", [finish, fail, lose, expire, lambda store, job_id: store.request_cancel(job_id)])
def test_who_waits_is_woken_by_every_end_of_the_job(redis_url, redis, end):
    async def wait():
        store = JobStore(redis, clock=FakeClock())
        job, other = (store.create(a_job(), max_queue_length=9).id for _ in range(2))
        async with listening(redis_url, redis) as ends:
            with ends.watch(job) as ended, ends.watch(other) as other_ended:
                end(store, job)
                async with asyncio.timeout(10):
                    await ended.wait()
                assert not other_ended.is_set()
            assert ends._waiting == {}  # nothing is kept of those who waited

    asyncio.run(wait())


def test_after_its_connection_broke_the_next_end_is_heard(redis_url, redis):
    async def wait():
        store = JobStore(redis)
        async with listening(redis_url, redis) as ends:
            redis.client_kill_filter(_type="pubsub")
            await subscribed(redis)
            job_id = store.create(a_job(), max_queue_length=9).id
            with ends.watch(job_id) as ended:
                finish(store, job_id)
                async with asyncio.timeout(10):
                    await ended.wait()

    asyncio.run(wait())


def test_a_user_who_may_not_use_the_channel_ends_jobs_all_the_same(redis_url, redis):
    redis.acl_setuser("mute", enabled=True, passwords=["+p"], keys=["*"], channels=[], categories=["+@all"])
    try:
        mute = connect(redis_url.replace("redis://", "redis://mute:p@"))
        store = JobStore(mute)
        job_id = store.create(a_job(), max_queue_length=9).id
        finish(store, job_id)
        assert store.require(job_id).status is JobStatus.SUCCEEDED
        mute.close()
    finally:
        redis.acl_deluser("mute")
