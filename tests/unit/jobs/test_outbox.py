"""The outbox: one entry for each job that ended and asked for it, held by one deliverer at a time, never lost."""

import json

import pytest

from jobs import JobError, JobOutcome, JobQueue, JobStatus, JobStore, Outbox, Recovery, WebhookOutcome, WebhookState
from jobs.keys import DEAD_WEBHOOKS, OUTBOX, webhook_key
from jobs.outbox import CLAIM_SECONDS, DEAD_SECONDS
from jobs.store import GIVE_UP_SECONDS
from tests.fakes import FakeClock, a_job

URL = "https://hooks.test/here?key=1"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


@pytest.fixture
def outbox(redis, clock):
    return Outbox(redis, clock=clock)


@pytest.fixture
def recovery(redis, store, clock):
    return Recovery(redis, store, JobQueue(redis, clock=clock), max_attempts=1, clock=clock)


def begin(store, attempt_id="run", **options):
    job_id = store.create(a_job(webhook_url=URL, **options), max_queue_length=99).id
    store.begin_attempt(job_id, attempt_id, lease_seconds=15)
    return job_id


def ended(store, status=JobStatus.SUCCEEDED, **options):
    job_id = begin(store, **options)
    assert store.finish(job_id, "run", status, JobOutcome())
    return job_id


def entries(redis):
    return [raw.decode() for raw in redis.zrange(OUTBOX, 0, -1)]


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED])
def test_a_run_that_ends_its_job_leaves_one_thin_webhook(outbox, store, clock, status):
    job_id = ended(store, status, prompt="a secret boat")
    (webhook,) = outbox.claim_due(limit=9)
    assert (webhook.job_id, webhook.url, webhook.attempts, webhook.id) == (job_id, URL, 1, f"msg_{job_id}")
    assert json.loads(webhook.body()) == {
        "type": f"job.{status.value}",
        "timestamp": "2027-01-15T08:00:00+00:00",
        "data": {"job_id": job_id, "status": status.value, "url": f"/v1/jobs/{job_id}"},
    }


def test_a_job_that_asked_for_no_webhook_leaves_none(redis, store):
    job_id = store.create(a_job(), max_queue_length=9).id
    store.begin_attempt(job_id, "run")
    store.finish(job_id, "run", JobStatus.SUCCEEDED, JobOutcome())
    store.request_cancel(store.create(a_job(), max_queue_length=9).id)
    assert entries(redis) == [] and not redis.exists(webhook_key(job_id))


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ("job.succeeded", ["succeeded"]),
        ("job.failed,job.canceled", ["failed", "canceled"]),
        ("job.canceled", ["canceled"]),
    ],
)
def test_only_the_ends_that_were_asked_for_are_told(outbox, store, events, told):
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED):
        ended(store, status, webhook_events=events)
    assert {webhook.status.value for webhook in outbox.claim_due(limit=9)} == set(told)


def test_a_job_canceled_while_it_waited_is_told_once(redis, outbox, store):
    job_id = store.create(a_job(webhook_url=URL), max_queue_length=9).id
    store.request_cancel(job_id)
    store.request_cancel(job_id)
    assert entries(redis) == [job_id]
    assert outbox.get(job_id).event == "job.canceled"


def test_a_running_job_that_is_asked_to_stop_is_told_when_it_has(redis, store):
    job_id = begin(store)
    store.request_cancel(job_id)
    assert entries(redis) == []
    store.finish(job_id, "run", JobStatus.CANCELED, JobOutcome())
    assert entries(redis) == [job_id]


def test_a_late_run_and_a_second_end_tell_nothing(redis, store):
    job_id = begin(store)
    assert not store.finish(job_id, "other run", JobStatus.FAILED, JobOutcome())
    assert entries(redis) == []
    assert store.finish(job_id, "run", JobStatus.SUCCEEDED, JobOutcome())
    before = redis.hgetall(webhook_key(job_id))
    assert not store.finish(job_id, "run", JobStatus.FAILED, JobOutcome())
    assert redis.hgetall(webhook_key(job_id)) == before


def test_a_job_that_is_put_back_is_told_of_only_when_it_ends(redis, store, clock, recovery):
    recovery._max_attempts = 2
    job_id = begin(store)
    store.release(job_id, "run")
    store.begin_attempt(job_id, "second", lease_seconds=15)
    clock.now += 16
    assert recovery.reclaim_expired() == {job_id: "queued"}
    assert entries(redis) == []
    store.begin_attempt(job_id, "third", lease_seconds=15)
    clock.now += 16
    assert recovery.reclaim_expired() == {job_id: "failed"}
    assert entries(redis) == [job_id]


def test_a_canceled_job_whose_worker_died_is_told_as_canceled(outbox, store, clock, recovery):
    job_id = begin(store)
    store.request_cancel(job_id)
    clock.now += 16
    assert recovery.reclaim_expired() == {job_id: "canceled"}
    assert outbox.get(job_id).event == "job.canceled"


def test_a_job_that_nobody_ended_is_told_as_failed_when_it_is_given_up(outbox, store, clock):
    job_id = store.create(a_job(webhook_url=URL), max_queue_length=9).id
    clock.now += GIVE_UP_SECONDS + 1
    assert store.expire(job_id)
    webhook = outbox.get(job_id)
    assert (webhook.event, webhook.status) == ("job.failed", JobStatus.EXPIRED)


def test_a_finished_job_that_expires_or_is_deleted_is_not_told_again_and_not_forgotten(redis, outbox, store, clock):
    first, second = ended(store), ended(store)
    before = {job_id: redis.hgetall(webhook_key(job_id)) for job_id in (first, second)}
    clock.now += 3601
    assert store.expire(first) and store.delete(second)
    assert {job_id: redis.hgetall(webhook_key(job_id)) for job_id in (first, second)} == before
    assert len(outbox.claim_due(limit=9)) == 2


def test_one_deliverer_at_a_time_has_an_entry_and_a_dead_one_gives_it_back(outbox, redis, store, clock):
    ended(store)
    (first,) = outbox.claim_due(limit=9)
    assert outbox.claim_due(limit=9) == Outbox(redis, clock=clock).claim_due(limit=9) == []
    clock.now += CLAIM_SECONDS + 1
    (second,) = outbox.claim_due(limit=9)
    assert (second.id, second.body(), second.attempts) == (first.id, first.body(), 2)
    assert not outbox.settle(first, WebhookOutcome.DELIVERED, http_status=200)  # its claim is lost
    assert outbox.get(first.job_id).state is WebhookState.PENDING
    assert outbox.settle(second, WebhookOutcome.DELIVERED, http_status=200)
    assert (outbox.num_pending(), outbox.deliveries()) == (0, {"delivered": 1})


def test_what_failed_waits_for_its_time(outbox, store, clock):
    job_id = ended(store)
    (webhook,) = outbox.claim_due(limit=9)
    outbox.settle(webhook, WebhookOutcome.REJECTED, http_status=503, retry_seconds=300)
    held = outbox.get(job_id)
    assert (held.state, held.last_outcome, held.last_status) == (WebhookState.PENDING, WebhookOutcome.REJECTED, 503)
    assert held.next_attempt_at.timestamp() == clock.now + 300
    clock.now += 299
    assert outbox.claim_due(limit=9) == []
    clock.now += 2
    (again,) = outbox.claim_due(limit=9)
    outbox.settle(again, WebhookOutcome.TIMED_OUT, retry_seconds=300)
    assert outbox.get(job_id).last_status is None  # of the last try, not of the one before


def test_what_was_given_up_is_kept_for_a_while_and_can_be_sent_again(redis, outbox, store, clock):
    job_id = ended(store)
    (webhook,) = outbox.claim_due(limit=9)
    outbox.settle(webhook, WebhookOutcome.UNREACHABLE)
    assert (outbox.get(job_id).state, outbox.num_pending(), outbox.num_dead()) == (WebhookState.DEAD, 0, 1)
    assert DEAD_SECONDS - 60 < redis.ttl(webhook_key(job_id)) <= DEAD_SECONDS
    assert outbox.replay(job_id).state is WebhookState.PENDING
    assert (outbox.num_dead(), redis.ttl(webhook_key(job_id))) == (0, -1)
    (again,) = outbox.claim_due(limit=9)
    assert (again.id, again.body(), again.attempts) == (webhook.id, webhook.body(), 1)
    outbox.settle(again, WebhookOutcome.UNREACHABLE)
    clock.now += DEAD_SECONDS + 1
    assert outbox.num_dead() == 0


def test_the_dead_are_bounded_and_the_oldest_go_first(redis, outbox, store, clock, monkeypatch):
    monkeypatch.setattr("jobs.outbox.MAX_DEAD", 2)
    job_ids = []
    for _ in range(4):
        job_ids.append(ended(store))
        (webhook,) = outbox.claim_due(limit=9)
        outbox.settle(webhook, WebhookOutcome.UNREACHABLE)
        clock.now += 1
    assert [raw.decode() for raw in redis.zrange(DEAD_WEBHOOKS, 0, -1)] == job_ids[2:]
    assert [redis.exists(webhook_key(job_id)) for job_id in job_ids] == [0, 0, 1, 1]


def test_a_delivered_one_is_told_of_as_long_as_its_job_and_can_be_sent_again(redis, outbox, store):
    job_id = ended(store)
    (webhook,) = outbox.claim_due(limit=9)
    outbox.settle(webhook, WebhookOutcome.DELIVERED, http_status=204)
    assert 3600 < redis.ttl(webhook_key(job_id)) <= 3600 + 86_400
    outbox.replay(job_id)
    assert [again.id for again in outbox.claim_due(limit=9)] == [webhook.id]


def test_a_replay_leaves_one_that_is_being_sent_alone_but_not_one_whose_deliverer_died(outbox, store, clock):
    job_id = ended(store)
    (webhook,) = outbox.claim_due(limit=9)
    outbox.replay(job_id)
    assert outbox.claim_due(limit=9) == []
    clock.now += CLAIM_SECONDS + 1
    outbox.replay(job_id)
    assert not outbox.settle(webhook, WebhookOutcome.DELIVERED, http_status=200)
    assert len(outbox.claim_due(limit=9)) == 1


def test_after_gone_nothing_is_sent_again(outbox, store):
    job_id = ended(store)
    (webhook,) = outbox.claim_due(limit=9)
    outbox.settle(webhook, WebhookOutcome.GONE, http_status=410)
    with pytest.raises(JobError) as raised:
        outbox.replay(job_id)
    assert raised.value.code == "webhook-disabled"
    with pytest.raises(JobError) as raised:
        outbox.replay("none")
    assert raised.value.code == "webhook-not-found"
    assert outbox.num_pending() == 0


def test_an_entry_without_its_webhook_is_dropped(redis, outbox, store):
    redis.delete(webhook_key(ended(store)))
    assert outbox.claim_due(limit=9) == [] and entries(redis) == []
