"""Whose a job is: the record says so, and each owner has an index of their own."""

import pytest

from jobs import JobError, JobOutcome, JobStatus, JobStore
from tests.fakes import FakeClock, a_job

OWNERS = ("", "alice", "bob")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


def create(store, owner=""):
    return store.create(a_job().model_copy(update={"owner": owner}), max_queue_length=100)


def listed(store, owner):
    return [record.id for record in store.list_jobs(limit=9, owner=owner)]


def test_each_owner_sees_their_own_jobs_page_by_page(store):
    ids = {owner: [] for owner in OWNERS}
    for _ in range(3):
        for owner in OWNERS:
            ids[owner].append(create(store, owner).id)
    for owner in OWNERS:
        page = store.list_jobs(limit=2, owner=owner)
        rest = store.list_jobs(limit=2, owner=owner, before=page[-1].sequence)
        assert [record.id for record in (*page, *rest)] == ids[owner][::-1]
        assert {record.owner for record in (*page, *rest)} == {owner}


@pytest.mark.parametrize("owner", OWNERS)
def test_only_the_owner_finds_a_job_and_others_hear_what_an_unknown_id_says(store, owner):
    job_id = create(store, owner).id
    assert store.require_own(job_id, owner).id == job_id
    told = set()
    for other in (*(name for name in OWNERS if name != owner), "alic", "alice*"):
        for asked in (job_id, "0" * 32):
            with pytest.raises(JobError, match="job-not-found") as raised:
                store.require_own(asked, other)
            told.add((raised.value.detail, raised.value.retry_after_seconds))
    assert len(told) == 1


@pytest.mark.parametrize("owner", OWNERS)
def test_a_deleted_job_leaves_its_owners_index(redis, store, owner):
    record = create(store, owner)
    store.request_cancel(record.id)
    assert store.delete(record.id)
    assert listed(store, owner) == []
    assert redis.keys("m3esr:jobs*") == []


@pytest.mark.parametrize("owner", OWNERS)
def test_an_expired_job_leaves_its_owners_index_and_is_still_theirs(redis, store, clock, owner):
    record = create(store, owner)
    store.begin_attempt(record.id, "a")
    store.finish(record.id, "a", JobStatus.SUCCEEDED, JobOutcome())
    clock.now += 3601
    assert store.expire(record.id)
    assert redis.keys("m3esr:jobs*") == []
    assert store.require_own(record.id, owner).status is JobStatus.EXPIRED


def test_a_record_from_before_there_were_owners_is_an_anonymous_callers(redis, store):
    record = create(store)
    base = redis.hget(f"m3esr:job:{record.id}", "base").decode()
    assert '"owner":"",' in base
    redis.hset(f"m3esr:job:{record.id}", "base", base.replace('"owner":"",', ""))
    assert store.require_own(record.id, "") == record
    assert listed(store, "") == [record.id]
