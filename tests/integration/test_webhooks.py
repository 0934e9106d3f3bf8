"""Webhooks from the end of a job to a real receiver: signed, tried again on schedule, sent again when asked for."""

import asyncio
import base64
import contextlib
import json
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from jobs import JobOutcome, JobQueue, JobStatus, JobStore, Outbox, Recovery, Settings, WebhookOutcome, WebhookState
from jobs.outbox import CLAIM_SECONDS
from service.webhooks import Deliverer, deliverer, webhook_guard
from tests.fakes import FakeClock, a_job
from tests.receivers import receiving

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
SETTINGS = Settings(webhook_secret=SECRET, webhook_allow_http=True, webhook_allow_private=True)


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def clock():
    return FakeClock(float(int(time.time())))


@pytest.fixture
def store(redis, clock):
    return JobStore(redis, clock=clock)


@pytest.fixture
def outbox(redis, clock):
    return Outbox(redis, clock=clock)


@pytest.fixture
def deliver(outbox, clock):
    """Send what is due, to the end, by a deliverer of its own; how many there were."""

    def run(settings=SETTINGS, **changes):
        changes = {"clock": clock, "jitter": lambda: 1.0, **changes}

        async def once():
            return await Deliverer(outbox, settings.webhook_keys, webhook_guard(settings), **changes).deliver_due()

        return asyncio.run(once())

    return run


@pytest.fixture
def ended(store, receiver):
    """A job that succeeded; its id."""

    def end(url=None, **options):
        job_id = store.create(a_job(webhook_url=url or receiver.url, **options), max_queue_length=99).id
        store.begin_attempt(job_id, "run")
        assert store.finish(job_id, "run", JobStatus.SUCCEEDED, JobOutcome())
        return job_id

    return end


def test_the_reference_library_verifies_what_arrives(deliver, ended, receiver, clock, outbox):
    job_id = ended(prompt="a secret boat")
    assert deliver() == 1
    ((path, headers, body),) = receiver.requests
    payload = Webhook(SECRET).verify(body, dict(headers))
    assert payload == {
        "type": "job.succeeded",
        "timestamp": datetime.fromtimestamp(clock.now, UTC).isoformat(),
        "data": {"job_id": job_id, "status": "succeeded", "url": f"/v1/jobs/{job_id}"},
    }
    assert (path, headers["content-type"], headers["host"]) == (
        "/hook?key=hidden",
        "application/json",
        f"127.0.0.1:{receiver.port}",
    )
    webhook = outbox.get(job_id)
    assert (webhook.state, webhook.attempts, webhook.last_status) == (WebhookState.DELIVERED, 1, 204)
    assert deliver() == 0


def test_a_receiver_that_is_down_is_tried_on_the_schedule_and_then_given_up(deliver, ended, receiver, clock, outbox):
    job_id, last = ended(), clock.now
    receiver.answers = [503] * 99
    for attempt, pause in enumerate(deliverer.PAUSES_SECONDS, start=1):
        clock.now = last + pause - 1
        assert deliver() == 0 or pause == 0
        clock.now = last + pause
        deliver()
        last = clock.now
        assert len(receiver.requests) == attempt
    webhook = outbox.get(job_id)
    assert (webhook.state, webhook.attempts, webhook.last_status) == (WebhookState.DEAD, 10, 503)
    assert set(receiver.ids) == {f"msg_{job_id}"}
    assert len({body for _, _, body in receiver.requests}) == 1
    assert len({headers["webhook-timestamp"] for _, headers, _ in receiver.requests}) == 10
    clock.now += 7 * 86_400 - 60
    assert deliver() == 0

    receiver.answers = []
    outbox.replay(job_id)
    assert deliver() == 1
    assert receiver.ids[-1] == f"msg_{job_id}"
    assert outbox.get(job_id).state is WebhookState.DELIVERED
    assert outbox.deliveries() == {"rejected": 10, "delivered": 1}


def test_pauses_vary_by_a_fifth(outbox, ended, receiver, clock):
    receiver.answers = [500] * 40
    for _ in range(40):
        ended()

    async def once():
        hands = Deliverer(outbox, SETTINGS.webhook_keys, webhook_guard(SETTINGS), clock=clock)
        return sum([await hands.deliver_due() for _ in range(40 // deliverer.MAX_PER_RECEIVER)])

    assert asyncio.run(once()) == 40
    due = [score - clock.now for _, score in outbox._redis.zrange("m3esr:webhooks", 0, -1, withscores=True)]
    assert min(due) >= 4 and max(due) <= 6 and len(set(due)) > 10


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_failure_and_not_followed(deliver, ended, receiver, outbox, status):
    with receiving() as elsewhere:
        job_id = ended()
        receiver.answers, receiver.headers = [status], {"Location": elsewhere.url}
        deliver()
        assert elsewhere.num_connections == 0
    assert (outbox.get(job_id).last_outcome, outbox.get(job_id).last_status) == (WebhookOutcome.REJECTED, status)


def test_the_environments_proxy_is_not_asked(deliver, ended, receiver, monkeypatch):
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        ended()
        deliver()
        assert (proxy.num_connections, len(receiver.requests)) == (0, 1)


def test_gone_ends_it(deliver, ended, receiver, clock, outbox):
    job_id = ended()
    receiver.answers = [410]
    deliver()
    assert (outbox.get(job_id).state, outbox.get(job_id).last_outcome) == (WebhookState.DEAD, WebhookOutcome.GONE)
    clock.now += 86_400
    assert deliver() == 0


@pytest.mark.parametrize("how", ["hold_seconds", "drip_seconds"])
def test_a_receiver_that_does_not_answer_in_time_is_tried_later(deliver, ended, receiver, outbox, monkeypatch, how):
    monkeypatch.setattr(deliverer, "SEND_SECONDS", 0.5)
    setattr(receiver, how, 3)
    job_id, started = ended(), time.monotonic()
    deliver()
    assert time.monotonic() - started < 2
    assert (outbox.get(job_id).state, outbox.get(job_id).last_outcome) == (
        WebhookState.PENDING,
        WebhookOutcome.TIMED_OUT,
    )


@pytest.mark.parametrize(
    ("url", "outcome"),
    [
        ("http://127.0.0.1:{free}/", WebhookOutcome.UNREACHABLE),
        ("https://127.0.0.1:{port}/", WebhookOutcome.UNREACHABLE),  # no TLS is spoken there
        ("http://no-such-name.invalid/", WebhookOutcome.UNREACHABLE),
        ("http://169.254.169.254/latest/meta-data", WebhookOutcome.BLOCKED),
        ("https://[::1", WebhookOutcome.BLOCKED),
    ],
)
def test_what_cannot_or_must_not_be_reached_is_told_and_tried_again(deliver, ended, receiver, outbox, url, outcome):
    with receiving() as ended_receiver:
        free = ended_receiver.port
    job_id = ended(url.format(free=free, port=receiver.port))
    deliver()
    assert (outbox.get(job_id).state, outbox.get(job_id).last_outcome) == (WebhookState.PENDING, outcome)
    assert receiver.requests == []


def test_a_private_receiver_is_checked_at_each_delivery_and_not_only_when_it_was_accepted(deliver, ended, receiver):
    ended()
    assert deliver(SETTINGS.model_copy(update={"webhook_allow_private": False})) == 1
    assert receiver.num_connections == 0


def test_a_webhook_survives_the_death_of_its_deliverer_between_send_and_note(
    deliver, ended, receiver, clock, outbox, monkeypatch
):
    job_id = ended()
    with monkeypatch.context() as patch, contextlib.suppress(ConnectionError):
        patch.setattr(outbox, "settle", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("dead")))
        deliver()
    assert (receiver.ids, deliver()) == ([f"msg_{job_id}"], 0)
    clock.now += CLAIM_SECONDS + 1
    assert deliver() == 1
    assert receiver.ids == [f"msg_{job_id}"] * 2
    assert outbox.get(job_id).state is WebhookState.DELIVERED


def test_a_webhook_that_kills_every_deliverer_is_given_up(deliver, ended, receiver, clock, outbox):
    job_id = ended()
    for _ in deliverer.PAUSES_SECONDS:
        outbox.claim_due(limit=1)
        clock.now += CLAIM_SECONDS + 1
    assert deliver() == 1
    assert (outbox.get(job_id).state, outbox.get(job_id).last_outcome) == (
        WebhookState.DEAD,
        WebhookOutcome.INTERRUPTED,
    )
    assert receiver.requests == []


def test_a_slow_receiver_gets_few_at_once_and_holds_nobody_else_up(redis, outbox, ended, receiver, clock):
    receiver.hold_seconds = 0.3
    for _ in range(40):
        ended()
    with receiving() as other:
        last = ended(other.url)

        async def one_round():
            deliverer_ = Deliverer(outbox, SETTINGS.webhook_keys, webhook_guard(SETTINGS), clock=clock)
            assert await deliverer_.start_due() == deliverer.MAX_PER_RECEIVER + 1
            assert await deliverer_.start_due() == 0
            await asyncio.wait(set(deliverer_._at_work))
            return await deliverer_.deliver_due()

        assert asyncio.run(one_round()) == deliverer.MAX_PER_RECEIVER
        assert other.ids == [f"msg_{last}"]
    assert receiver.most_at_once <= deliverer.MAX_PER_RECEIVER
    assert len(receiver.requests) == 2 * deliverer.MAX_PER_RECEIVER


def test_the_deliverer_goes_on_as_soon_as_a_hand_is_free(outbox, ended, receiver, clock, monkeypatch):
    monkeypatch.setattr(deliverer, "POLL_SECONDS", 30)
    job_ids = [ended() for _ in range(3 * deliverer.MAX_PER_RECEIVER)]

    async def until_all_are_sent():
        running = asyncio.create_task(
            Deliverer(outbox, SETTINGS.webhook_keys, webhook_guard(SETTINGS), clock=clock).run()
        )
        async with asyncio.timeout(20):
            while outbox.num_pending():
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(until_all_are_sent())
    assert sorted(receiver.ids) == sorted(f"msg_{job_id}" for job_id in job_ids)


@pytest.mark.parametrize("num_turns", range(5))
def test_the_deliverer_ends_when_told_to_while_a_hand_becomes_free(num_turns, outbox, monkeypatch):
    monkeypatch.setattr(deliverer, "POLL_SECONDS", 30)

    async def cancelled_at_an_unlucky_moment():
        deliverer_ = Deliverer(outbox, SETTINGS.webhook_keys, webhook_guard(SETTINGS))
        running = asyncio.create_task(deliverer_.run())
        while not deliverer_._hand_is_free._waiters:  # the round is over: it waits for a hand
            await asyncio.sleep(0.01)
        deliverer_._hand_is_free.set()
        for _ in range(num_turns):  # of the event loop, between the two
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=2)
        return running.cancelled()

    assert asyncio.run(cancelled_at_an_unlucky_moment())


def test_a_hand_that_becomes_free_while_webhooks_are_claimed_is_not_forgotten(outbox, monkeypatch):
    monkeypatch.setattr(deliverer, "POLL_SECONDS", 30)
    rounds = []

    async def two_rounds():
        deliverer_, loop = Deliverer(outbox, SETTINGS.webhook_keys, webhook_guard(SETTINGS)), asyncio.get_running_loop()

        def claim_due(**_):
            if not rounds:
                loop.call_soon_threadsafe(deliverer_._hand_is_free.set)
            rounds.append("claimed")
            return []

        monkeypatch.setattr(outbox, "claim_due", claim_due)
        running = asyncio.create_task(deliverer_.run())
        async with asyncio.timeout(5):
            while len(rounds) < 2:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(two_rounds())


def test_several_deliverers_send_each_webhook_once(redis, ended, receiver, clock):
    job_ids = [ended() for _ in range(40)]

    async def together():
        hands = [
            Deliverer(Outbox(redis, clock=clock), SETTINGS.webhook_keys, webhook_guard(SETTINGS), clock=clock)
            for _ in range(3)
        ]
        while sum(await asyncio.gather(*(each.deliver_due() for each in hands))):
            pass

    asyncio.run(together())
    assert sorted(receiver.ids) == sorted(f"msg_{job_id}" for job_id in job_ids)


def test_a_job_whose_worker_was_killed_is_told_once_by_the_run_that_ended_it(
    redis, deliver, store, clock, receiver, outbox
):
    recovery = Recovery(redis, store, JobQueue(redis, clock=clock), max_attempts=3, clock=clock)
    job_id = store.create(a_job(webhook_url=receiver.url), max_queue_length=9).id
    store.begin_attempt(job_id, "killed", lease_seconds=15)
    clock.now += 16
    assert recovery.reclaim_expired() == {job_id: "queued"}
    assert deliver() == 0
    store.begin_attempt(job_id, "second", lease_seconds=15)
    assert not store.finish(job_id, "killed", JobStatus.FAILED, JobOutcome())  # it was not dead after all
    assert store.finish(job_id, "second", JobStatus.SUCCEEDED, JobOutcome())
    assert (deliver(), deliver()) == (1, 0)
    assert receiver.ids == [f"msg_{job_id}"]
    assert json.loads(receiver.requests[0][2])["type"] == "job.succeeded"


def test_cookies_and_bodies_of_a_receiver_are_of_no_interest(deliver, ended, receiver):
    receiver.headers = {"Set-Cookie": "session=1", "Content-Length": "1000000000"}
    ended()
    deliver()
    ended()
    deliver()
    assert len(receiver.requests) == receiver.num_connections == 2
    assert all(headers["cookie"] is None for _, headers, _ in receiver.requests)
