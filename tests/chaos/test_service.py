"""The API while Redis or the storage is away, and an API that is killed while it accepts jobs."""

import random
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from jobs import JobStatus, Outbox, WebhookState
from jobs.keys import OUTBOX
from jobs.outbox import CLAIM_SECONDS
from service.sweeper import ORPHAN_AGE, sweep_orphans
from tests.chaos.fleet import AWAY_SECONDS, NUM_FAULTS, NUM_JOBS, Fleet
from tests.chaos.processes import wait_until
from tests.fakes import picture
from tests.receivers import receiving

SECRET = "whsec_" + "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="

pytestmark = pytest.mark.timeout(1800)  # at full length


def test_an_absent_redis_is_told_at_once_and_everything_recovers_by_itself(fleet):
    api = fleet.start_service()
    fleet.start_worker()
    fleet.start_worker()
    for _ in range(NUM_JOBS):
        fleet.submit(num_steps=4)
    wait_until(fleet.running, 60, "a job runs")
    known = fleet.job_ids[0]
    fleet.server.stop()
    away_since, slowest = time.monotonic(), 0.0
    while time.monotonic() - away_since < AWAY_SECONDS:
        for ask in (lambda: api.submit(picture()), lambda: api.client.get(f"/v1/jobs/{known}")):
            asked_at = time.monotonic()
            answer = ask()
            slowest = max(slowest, time.monotonic() - asked_at)
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "urn:m3esr:problem:redis-unavailable"
        time.sleep(0.5)
    fleet.server.start()
    late = wait_until(lambda: api.accepted(picture()), 20, "the API accepts jobs again")
    fleet.job_ids.append(late)
    fleet.check_published_once(fleet.drain())
    fleet.report(f"Redis away for {AWAY_SECONDS:g} s (slowest 503 after {slowest:.2f} s)", 1)
    assert slowest < 1


def test_an_api_killed_while_it_accepts_jobs_leaves_no_orphan_and_no_twin(fleet):
    randomness = random.Random(0)
    api = fleet.start_service()
    fleet.start_worker()
    accepted = set()
    for number in range(num_faults := max(2, NUM_FAULTS // 3)):
        request = threading.Thread(target=api.submit, args=(picture(), f"key-{number}"))
        request.start()
        time.sleep(randomness.uniform(0, 0.03))
        api.kill()
        request.join()
        api.start()
        accepted.add(wait_until(lambda n=number: api.accepted(picture(), f"key-{n}"), 30, "the request is accepted"))
    assert len(accepted) == num_faults
    fleet.job_ids += sorted(accepted)
    fleet.check_published_once(fleet.drain())
    assert fleet.store.num_accepted() == num_faults
    sweep_orphans(fleet.store, fleet.blobs, datetime.now(UTC) + ORPHAN_AGE + timedelta(minutes=1))
    assert {key.split("/")[0] for key in fleet.stored()} == accepted
    fleet.report("kill -9 of the API while it accepts a job", num_faults)


def test_a_webhook_whose_deliverer_is_killed_while_it_sends_is_sent_again_by_another(tmp_path):
    """Between the receiver's taking it and the note that it did: the same webhook-id comes twice, and is settled."""
    fleet = Fleet(tmp_path, M3ESR_WEBHOOK_SECRET=SECRET, M3ESR_WEBHOOK_ALLOW_HTTP="1", M3ESR_WEBHOOK_ALLOW_PRIVATE="1")
    try:
        with receiving() as receiver:
            fleet.start_worker()
            api = fleet.start_service()
            receiver.hold_seconds = 3600
            job_id = fleet.submit(num_steps=1, webhook_url=receiver.url)
            wait_until(lambda: receiver.requests, 30, "the webhook is being sent")
            api.kill()
            receiver.hold_seconds = 0
            api.start()
            outbox = Outbox(fleet.redis)
            assert outbox.get(job_id).state is WebhookState.PENDING
            if AWAY_SECONDS < CLAIM_SECONDS:  # shortened: as if the claim of the dead had run out by now
                fleet.redis.zadd(OUTBOX, {job_id: time.time()})
            started = time.monotonic()
            wait_until(
                lambda: outbox.get(job_id).state is WebhookState.DELIVERED, CLAIM_SECONDS + 20, "it is sent again"
            )
            assert receiver.ids == [f"msg_{job_id}"] * 2
            assert (outbox.get(job_id).attempts, outbox.num_pending()) == (2, 0)
            fleet.recoveries.append(time.monotonic() - started)
            fleet.report("kill -9 of the API while it sends a webhook", 1)
    finally:
        fleet.close()


@pytest.mark.parametrize("code", ["storage-full", "storage-unavailable"])
def test_without_storage_jobs_fail_with_the_reason_and_nothing_half_written_is_served(fleet, code):
    if code == "storage-full":
        fleet.put_storage_on_a_disk_of(200_000)
    api = fleet.start_service()
    running_id = fleet.submit(num_steps=20)
    fleet.start_worker()
    wait_until(fleet.running, 60, "the job runs")
    repair = fleet.fill_storage() if code == "storage-full" else fleet.take_storage_away()
    refused = api.submit(picture(64, 64))
    record = fleet.drain()[0]
    repair()
    assert (refused.status_code, refused.json()["type"]) == (503, f"urn:m3esr:problem:{code}")
    assert (record.status, record.outcome.error.code) == (JobStatus.FAILED, code)
    assert api.client.get(f"/v1/jobs/{running_id}/result").status_code == 409
    assert {key.split("/")[0] for key in fleet.stored()} <= {running_id}
    fleet.job_ids.append(wait_until(lambda: api.accepted(picture()), 10, "the API accepts jobs again"))
    assert fleet.drain()[1].status is JobStatus.SUCCEEDED
    fleet.report(code, 1)
