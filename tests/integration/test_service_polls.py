"""Status polls take a shortcut past the framework, and waiting ones are woken: nobody may see more than the time."""

import asyncio
import time

import httpx
import pytest

from jobs import BlobStore, JobEnds, JobStore, KeyStore, Settings, connect, keys
from service.app import create_app
from service.routes import upscale
from tests.chaos.processes import wait_until
from tests.fakes import a_job
from tests.integration.serving import upload

SHOWN_PER_REQUEST = ("x-request-id", "date")


async def ask(app, prefix, path, headers):
    """The answer below a prefix, which the shortcut leaves to the router, or without one."""
    transport = httpx.ASGITransport(app, root_path=prefix)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        return await http.get(prefix + path, headers=headers)


def told(answer):
    body = answer.json()
    headers = {name: value for name, value in answer.headers.items() if name not in SHOWN_PER_REQUEST}
    if answer.status_code >= 400:  # a problem names its path and request
        del body["instance"], body["request_id"], headers["content-length"]
    return answer.status_code, headers, body


@pytest.fixture
def app(redis_url, logs):
    redis = connect(redis_url)
    yield create_app(Settings(redis_url=redis_url), redis, BlobStore.open("memory:///"))
    redis.close()


def poll_both_ways(app, job_id, headers=None):
    async def both():
        answers = [await ask(app, prefix, f"/v1/jobs/{job_id}", headers) for prefix in ("", "/api")]
        await app.state.context.polls.close()
        return answers

    short, long = asyncio.run(both())
    assert told(short) == told(long)
    return short


@pytest.mark.parametrize(("job_id", "status"), [(None, 200), ("0" * 32, 404), ("no id", 404), ("%0a", 404)])
def test_a_poll_is_answered_as_the_router_would_have_it(app, redis, job_id, status):
    own = JobStore(redis).create(a_job(), max_queue_length=10).id
    answer = poll_both_ways(app, job_id or own)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"


def test_a_poll_asks_for_a_key_as_the_router_does(app, redis):
    job_id = JobStore(redis).create(a_job(), max_queue_length=10).id  # nobody's, so no key opens it
    _, secret = KeyStore(redis).create("camera")
    assert poll_both_ways(app, job_id).status_code == 401
    assert poll_both_ways(app, job_id, {"X-API-Key": secret[:-1] + "?"}).status_code == 401
    assert poll_both_ways(app, job_id, {"X-API-Key": secret}).status_code == 404


def test_a_poll_is_counted_and_logged_under_its_route(service, logs):
    job_id = service.context.store.create(a_job(), max_queue_length=10).id
    assert service.http.get(f"/v1/jobs/{job_id}").status_code == 200
    assert service.http.head(f"/v1/jobs/{job_id}").status_code == 405
    labels = 'm3esr_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0'
    assert labels in service.http.get("/metrics").text
    assert any(line.get("event") == "request" and line.get("job_id") == job_id for line in logs)


def test_a_poll_finds_its_script_after_redis_forgot_it(service, redis):
    job_id = service.context.store.create(a_job(), max_queue_length=10).id
    for _ in range(2):
        redis.script_flush()
        assert service.http.get(f"/v1/jobs/{job_id}").status_code == 200


@pytest.mark.parametrize("is_word_heard", [True, False])
def test_who_waits_is_answered_on_word_of_the_end_and_without_it_by_a_poll(service, redis, monkeypatch, is_word_heard):
    if is_word_heard:
        monkeypatch.setattr(upscale, "WAIT_POLL_SECONDS", 30.0)
        wait_until(lambda: redis.pubsub_numsub(keys.ENDED)[0][1], 10, "the API listens")
    else:
        monkeypatch.setattr(JobEnds, "_pass_on", lambda self, message: None)
    with service.worker.running(step_seconds=0.1):
        started = time.monotonic()
        answer = upload(service.http, headers={"Prefer": "wait=30"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert time.monotonic() - started < 10
