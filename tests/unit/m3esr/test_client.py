"""The client: what it sends, when it tries again, and what it says when it gives up."""

import json

import httpx
import pytest

from m3esr import Client
from m3esr.client import ClientError, Job, ServerAway

DONE = {
    "id": "j1",
    "status": "succeeded",
    "result": {"url": "/v1/jobs/j1/result"},
    "maps": {"depth": {"url": "/v1/jobs/j1/maps/depth"}},
}


def problem(status, code, detail, **headers):
    body = {"type": f"urn:m3esr:problem:{code}", "title": "Title", "detail": detail}
    return httpx.Response(status, json=body, headers=headers)


class FakeServer:
    """Gives the answers in turn, the last one for ever; remembers requests and waits."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests, self.waits = [], []

    def __call__(self, request):
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options):
        transport = httpx.MockTransport(self)
        return Client("http://server:8000/", transport=transport, sleep=self.waits.append, **options)


def test_submit_sends_the_file_and_only_the_fields_given():
    server = FakeServer(httpx.Response(202, json={"id": "j1", "status": "queued"}))
    job = server.client().submit(
        b"image", filename="a.png", scale=2.0, prompt=None, modalities={"depth": 0.5}, maps=False
    )
    request = server.requests[0]
    body = request.content.decode()
    assert (job.id, job.status, str(request.url)) == ("j1", "queued", "http://server:8000/v1/upscale")
    assert 'name="file"; filename="a.png"' in body
    assert "depth:0.5" in body and "false" in body
    assert "prompt" not in body


def test_a_full_queue_is_tried_again_after_the_time_the_server_names_with_the_same_key():
    server = FakeServer(
        problem(429, "queue-full", "full", **{"Retry-After": "7"}),
        httpx.Response(202, json={"id": "j1", "status": "queued"}),
    )
    server.client().submit(b"image")
    assert server.waits == [7.0]
    keys = {request.headers["Idempotency-Key"] for request in server.requests}
    assert len(keys) == 1


def test_patience_ends_with_the_servers_own_words():
    server = FakeServer(problem(503, "redis-unavailable", "The job database is away.", **{"Retry-After": "50"}))
    with pytest.raises(ClientError, match="job database is away") as caught:
        server.client(patience_seconds=120).job("j1")
    assert (caught.value.code, caught.value.status) == ("redis-unavailable", 503)
    assert server.waits == [50.0, 50.0]


def test_a_refusal_is_not_tried_again():
    server = FakeServer(problem(422, "invalid-option", "scale must be at most 4"))
    with pytest.raises(ClientError, match="scale must be at most 4"):
        server.client().submit(b"image", scale=9)
    assert len(server.requests) == 1


def test_a_server_that_does_not_listen_is_said_at_once():
    server = FakeServer(httpx.ConnectError("refused"))
    with pytest.raises(ServerAway, match="Is the server running"):
        server.client().job("j1")
    assert server.waits == []


def test_a_broken_connection_is_tried_again():
    server = FakeServer(httpx.ReadError("reset"), httpx.Response(200, json=DONE))
    assert server.client().job("j1").is_final


def test_wait_tells_each_state_and_ends_with_the_finished_job():
    running = {"id": "j1", "status": "running", "progress": {"stage": "denoising", "step": 1, "num_steps": 4}}
    server = FakeServer(httpx.Response(200, json=running), httpx.Response(200, json=DONE))
    client, told = server.client(), []
    job = client.wait(client.job("j1"), on_progress=lambda now: told.append((now.stage, now.fraction)))
    assert job.status == "succeeded"
    assert told == [("denoising 1/4", 0.0), ("succeeded", 1.0)]


def test_a_failed_job_tells_why():
    body = {"id": "j1", "status": "failed", "error": {"type": "urn:m3esr:problem:timed-out", "detail": "Too slow."}}
    client = FakeServer(httpx.Response(200, json=body)).client()
    with pytest.raises(ClientError, match=r"job j1 failed: Too slow\.") as caught:
        client.wait(client.job("j1"))
    assert caught.value.code == "timed-out"


def test_result_and_maps_are_fetched_where_the_job_says():
    server = FakeServer(httpx.Response(200, json=DONE), httpx.Response(200, content=b"bytes"))
    client = server.client()
    job = client.job("j1")
    assert client.result(job) == b"bytes"
    assert client.maps(job, as_values=True) == {"depth": b"bytes"}
    assert [request.url.path for request in server.requests[1:]] == ["/v1/jobs/j1/result", "/v1/jobs/j1/maps/depth"]
    assert server.requests[2].headers["Accept"] == "application/x-npy"


def test_a_job_that_points_elsewhere_is_not_followed():
    body = {**DONE, "result": {"url": "http://169.254.169.254/secret"}}
    server = FakeServer(httpx.Response(200, json=body))
    client = server.client()
    with pytest.raises(ClientError, match="another address"):
        client.result(client.job("j1"))
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["ftp://server", "nonsense", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ClientError, match="is not an http"):
        Client(url)


def test_an_answer_that_is_no_job_is_said():
    with pytest.raises(ClientError, match="is it an M3ESR server"):
        FakeServer(httpx.Response(200, text="<html>")).client().job("j1")


def test_a_key_goes_along_with_every_request():
    server = FakeServer(httpx.Response(200, json=DONE))
    client = server.client(api_key=" m3esr_id_secret\n", headers={"X-Other": "1"})
    client.submit(b"image")
    client.result(client.job("j1"))
    assert {request.headers["Authorization"] for request in server.requests} == {"Bearer m3esr_id_secret"}
    assert {request.headers["X-Other"] for request in server.requests} == {"1"}


@pytest.mark.parametrize("api_key", ["", "m3esr_id\r\nX: 1", "ключ", "two words"])
def test_a_key_no_header_can_carry_is_refused_without_repeating_it(api_key):
    with pytest.raises(ClientError, match="the API key") as caught:
        Client("http://server", api_key=api_key)
    assert not api_key or api_key not in str(caught.value)


@pytest.mark.parametrize("url", ["http://server:9000/x", "https://server:8000/x", "http://other:8000/x"])
def test_a_key_is_sent_to_no_other_origin(url):
    server = FakeServer(httpx.Response(200, json={**DONE, "result": {"url": url}}))
    client = server.client(api_key="m3esr_id_secret")
    with pytest.raises(ClientError, match="another address"):
        client.result(client.job("j1"))
    assert len(server.requests) == 1


def test_a_quota_that_is_used_up_is_not_waited_for():
    server = FakeServer(problem(429, "quota-exceeded", "Nothing is left.", **{"Retry-After": "80000"}))
    with pytest.raises(ClientError, match="Nothing is left"):
        server.client().submit(b"image")
    assert server.waits == []


BATCH = {"id": "b1", "jobs": [DONE, {"id": "j2", "status": "queued"}], "counts": {"succeeded": 1, "queued": 1}}


def test_a_batch_is_sent_with_all_its_files_and_read_back(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.jpg")]
    for path in paths:
        path.write_bytes(b"image of " + path.name.encode())
    server = FakeServer(httpx.Response(202, json=BATCH), httpx.Response(200, json=BATCH), httpx.Response(202))
    client = server.client()
    batch = client.submit_batch(paths, scale=2.0, prompt=None, modalities={"depth": 0.5})
    assert ([job.id for job in batch.jobs], batch.is_finished) == (["j1", "j2"], False)
    body = server.requests[0].content.decode()
    assert body.count('name="file"; filename=') == 2
    assert "image of a.png" in body and "image of b.jpg" in body and "depth:0.5" in body and "prompt" not in body
    assert server.requests[0].headers["Idempotency-Key"]
    client.cancel_batch(client.batch(batch.id))
    told = [(request.method, request.url.path) for request in server.requests]
    assert told == [("POST", "/v1/batches"), ("GET", "/v1/batches/b1"), ("DELETE", "/v1/batches/b1")]


def test_an_answer_that_is_no_batch_is_said():
    with pytest.raises(ClientError, match="did not answer with a batch"):
        FakeServer(httpx.Response(200, json={"id": "b1", "jobs": [{}]})).client().batch("b1")


def test_a_job_is_replayed_under_its_id():
    server = FakeServer(httpx.Response(202, json={"id": "j1", "status": "queued"}))
    client = server.client()
    assert client.replay(Job("j1", "failed", {})).status == "queued"
    assert (server.requests[0].method, server.requests[0].url.path) == ("POST", "/v1/jobs/j1/replay")


def test_a_preview_is_fetched_where_there_is_one():
    server = FakeServer(httpx.Response(200, content=b"jpeg"))
    client = server.client()
    assert client.preview(Job("j1", "running", {"preview": None})) is None
    assert client.preview(Job("j1", "running", {"preview": {"url": "/v1/jobs/j1/preview"}})) == b"jpeg"
    assert [request.url.path for request in server.requests] == ["/v1/jobs/j1/preview"]


def test_an_estimate_is_asked_for_with_the_options_given():
    server = FakeServer(httpx.Response(200, json={"seconds": 1.5}))
    assert server.client().estimate(640, 480, scale=2, seed=None) == {"seconds": 1.5}
    assert json.loads(server.requests[0].content) == {"input": {"width": 640, "height": 480}, "options": {"scale": 2}}
