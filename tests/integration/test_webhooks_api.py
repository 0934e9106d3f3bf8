"""Webhooks through the API: from the form to a real receiver, and the addresses that are refused."""

import base64
import json
import time

import pytest
from pydantic import SecretStr

from tests.integration.serving import upload
from tests.receivers import receiving

OPEN = {
    "webhook_secret": SecretStr("whsec_" + base64.b64encode(b"k" * 32).decode()),
    "webhook_allow_http": True,
    "webhook_allow_private": True,
}


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


def wait_for(fact, seconds=10):
    until = time.monotonic() + seconds
    while not fact() and time.monotonic() < until:
        time.sleep(0.02)
    assert fact()


def test_a_webhook_goes_from_the_form_to_the_receiver_and_can_be_replayed(serve, receiver, logs):
    service = serve(**OPEN)
    job = upload(service.http, webhook_url=receiver.url, webhook_events="job.succeeded,job.failed").json()
    assert job["webhook"] == {
        "url": receiver.url,
        "events": ["job.succeeded", "job.failed"],
        "state": "pending",
        "attempts": 0,
        "last_outcome": None,
        "last_status": None,
        "next_attempt_at": None,
    }
    assert service.http.post(f"{job['url']}/webhook/replay").json()["type"].endswith("job-not-finished")
    service.worker.run_next()
    wait_for(lambda: service.http.get(job["url"]).json()["webhook"]["state"] == "delivered")
    told = service.http.get(job["url"]).json()["webhook"]
    assert (told["attempts"], told["last_outcome"], told["last_status"]) == (1, "delivered", 204)

    answer = service.http.post(f"{job['url']}/webhook/replay")
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    wait_for(lambda: len(receiver.ids) == 2)
    assert receiver.ids == [f"msg_{job['id']}"] * 2
    wait_for(lambda: 'm3esr_webhook_deliveries_total{outcome="delivered"} 2.0' in service.http.get("/metrics").text)
    assert "m3esr_webhooks_pending 0.0" in service.http.get("/metrics").text
    lines = [line for line in logs if line["event"] == "webhook_tried"]
    assert [(line["host"], line["outcome"]) for line in lines] == [("127.0.0.1", "delivered")] * 2
    assert "hidden" not in json.dumps(logs, default=str) and "whsec_" not in json.dumps(logs, default=str)


def test_a_job_that_ends_otherwise_than_asked_for_is_not_told(serve, receiver):
    service = serve(**OPEN)
    job = upload(service.http, webhook_url=receiver.url, webhook_events="job.failed").json()
    service.worker.run_next()
    assert service.http.get(job["url"]).json()["webhook"]["state"] is None
    assert service.http.post(f"{job['url']}/webhook/replay").json()["type"].endswith("webhook-not-found")
    assert receiver.num_connections == 0


def test_a_receiver_that_said_gone_is_not_replayed_to(serve, receiver):
    service = serve(**OPEN)
    receiver.answers = [410]
    job = upload(service.http, webhook_url=receiver.url).json()
    service.http.delete(job["url"])
    wait_for(lambda: service.http.get(job["url"]).json()["webhook"]["state"] == "dead")
    answer = service.http.post(f"{job['url']}/webhook/replay")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:m3esr:problem:webhook-disabled")
    assert json.loads(receiver.requests[0][2])["type"] == "job.canceled"


@pytest.mark.parametrize(
    ("settings", "url", "words"),
    [
        ({}, "https://example.org/", "no secret"),
        (OPEN, "ftp://example.org/", "begin with https:// or http://"),
        (OPEN | {"webhook_allow_http": False}, "http://127.0.0.1:8080/", "begin with https://"),
        (OPEN | {"webhook_allow_private": False}, "https://127.0.0.1/", "no address that this server"),
        (OPEN | {"webhook_allow_private": False}, "https://localhost:6379/", "no address that this server"),
        (OPEN, "https://169.254.169.254/latest", "no address that this server"),
        (OPEN, "https://no-such-name.invalid/", "no address that this server"),
        (OPEN, "https://me:secret@example.org/", "name or password"),
        (OPEN, "https://2130706433/", "plain IP"),
    ],
)
def test_an_address_that_webhooks_must_not_reach_is_refused_when_it_is_sent(serve, settings, url, words):
    service = serve(**settings)
    answer = upload(service.http, webhook_url=url)
    problem = answer.json()
    assert (answer.status_code, problem["type"], problem["field"]) == (
        422,
        "urn:m3esr:problem:invalid-option",
        "webhook_url",
    )
    assert words in problem["detail"]
    assert service.http.get("/v1/jobs").json()["jobs"] == []
