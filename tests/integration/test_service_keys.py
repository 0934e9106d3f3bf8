"""API keys over HTTP: who is let in, and that nobody sees another's jobs."""

import json
import socket

import pytest

from jobs import Settings
from tests.conftest import RedisServer, everything_in
from tests.fakes import picture
from tests.integration.serving import serving, upload
from tests.integration.test_service import read_events
from tests.integration.test_service_safety import assert_problem
from tests.unit.m3esr.test_cli import run

V1_ROUTES = [
    ("POST", "/v1/upscale"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/0123"),
    ("GET", "/v1/jobs/0123/events"),
    ("GET", "/v1/jobs/0123/result"),
    ("GET", "/v1/jobs/0123/result/link"),
    ("GET", "/v1/jobs/0123/maps/depth"),
    ("GET", "/v1/jobs/0123/preview"),
    ("DELETE", "/v1/jobs/0123"),
    ("POST", "/v1/jobs/0123/replay"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches/0123"),
    ("DELETE", "/v1/batches/0123"),
    ("POST", "/v1/estimate"),
    ("POST", "/v1/jobs/0123/webhook/replay"),
    ("GET", "/v1/profiles"),
]
OPEN_ROUTES = ["/livez", "/metrics", "/", "/docs", "/openapi.json", "/web/app.js"]


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def make_key(service, name="camera", **limits):
    """A new key as request headers."""
    return bearer(service.context.keys.create(name, **limits)[1])


def assert_unauthorized(answer):
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_list_of_routes_here_is_the_one_served(service):
    paths = service.http.get("/openapi.json").json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    tried = {
        (
            method,
            path.replace("batches/0123", "batches/{batch_id}").replace("0123", "{job_id}").replace("/depth", "/{name}"),
        )
        for method, path in V1_ROUTES
    }
    assert {route for route in served if route[1].startswith("/v1/")} == tried


@pytest.mark.parametrize(("method", "path"), V1_ROUTES)
def test_as_soon_as_there_is_a_key_every_v1_route_asks_for_one(service, method, path):
    assert service.http.request(method, path).status_code != 401
    make_key(service)
    assert_unauthorized(service.http.request(method, path))


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_health_metrics_and_pages_answer_without_a_key(service, path):
    make_key(service)
    assert service.http.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        lambda secret: bearer(secret[:-1] + ("A" if secret[-1] != "A" else "B")),
        lambda secret: {"Authorization": "Bearer"},
        lambda secret: {"Authorization": secret},
        lambda secret: {"Authorization": f"Basic {secret}"},
        lambda secret: {"X-API-Key": secret[:-1]},
        lambda secret: {"X-API-Key": ""},
        lambda secret: {"Cookie": f"api_key={secret}"},
    ],
)
def test_a_wrong_key_is_refused(service, headers):
    _, secret = service.context.keys.create("camera")
    assert_unauthorized(service.http.get("/v1/jobs", headers=headers(secret)))
    assert_unauthorized(service.http.get(f"/v1/jobs?api_key={secret}", headers=headers(secret)))


@pytest.mark.parametrize(
    "headers",
    [
        lambda secret: bearer(secret),
        lambda secret: {"Authorization": f"bearer {secret}"},
        lambda secret: {"X-API-Key": secret},
        lambda secret: {"X-API-Key": secret, "Authorization": "Basic cHJveHk6cHJveHk="},
        lambda secret: {"X-API-Key": secret, "Authorization": "Bearer of-a-proxy"},
    ],
)
def test_a_key_opens_either_way(service, headers):
    _, secret = service.context.keys.create("camera")
    assert service.http.get("/v1/jobs", headers=headers(secret)).status_code == 200


def test_a_revoked_key_opens_nothing_from_that_moment_on_nor_does_none(service):
    key, secret = service.context.keys.create("camera")
    job = upload(service.http, headers=bearer(secret)).json()
    service.context.keys.revoke(key.id)
    for headers in (bearer(secret), {}):
        for path in ("/v1/jobs", job["url"], "/v1/profiles"):
            assert_unauthorized(service.http.get(path, headers=headers))


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "allow_anonymous": True}, True),
        ({"host": "127.0.0.1"}, True),
    ],
)
def test_without_any_key_only_a_server_that_may_answers_anonymous_callers(serve, settings, is_open):
    service = serve(**settings)
    assert service.http.get("/v1/jobs").status_code == (200 if is_open else 401)
    key, _ = service.context.keys.create("camera")
    service.context.keys.revoke(key.id)
    assert_unauthorized(service.http.get("/v1/jobs"))  # revoking the last one opens no server
    service.context.keys.forget(key.id)
    assert service.http.get("/v1/jobs").status_code == (200 if is_open else 401)


def test_a_server_without_keys_minds_no_key_that_is_sent(service):
    assert service.http.get("/v1/jobs", headers=bearer("of-another-server")).status_code == 200


def test_a_wrong_key_is_refused_before_the_upload_is_asked_for(service):
    make_key(service)
    url = service.http.base_url
    lines = ("POST /v1/upscale HTTP/1.1", f"Host: {url.host}", "Content-Length: 9000000", "Expect: 100-continue")
    with socket.create_connection((url.host, url.port), timeout=5) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_wrong_key_is_told_although_the_upload_is_under_way(service):
    make_key(service)
    assert_unauthorized(upload(service.http, bytes(20_000_000)))


def run_a_job(service, headers):
    job = upload(service.http, headers=headers).json()
    service.worker.run_next()
    return job


@pytest.mark.parametrize(("method", "path"), [route for route in V1_ROUTES if "0123" in route[1]])
@pytest.mark.parametrize("is_finished", [True, False])
def test_anothers_job_answers_as_an_unknown_id_does(service, method, path, is_finished):
    alice, bob = make_key(service, "alice"), make_key(service, "bob")
    job = upload(service.http, headers=alice).json()
    if is_finished:
        service.worker.run_next()
    unknown = "0" * 32
    headers = {**bob, "X-Request-Id": "same", "Accept": "*/*"}
    foreign_answer = service.http.request(method, path.replace("0123", job["id"]), headers=headers)
    unknown_answer = service.http.request(method, path.replace("0123", unknown), headers=headers)
    assert_problem(foreign_answer, 404, "batch-not-found" if "batches" in path else "job-not-found")
    assert foreign_answer.content.replace(job["id"].encode(), unknown.encode()) == unknown_answer.content
    told = [{**answer.headers, "date": ""} for answer in (foreign_answer, unknown_answer)]
    assert told[0] == told[1]
    assert service.http.get(job["url"], headers=alice).json()["cancel_requested"] is False


def test_ones_own_job_is_served_on_every_route(service):
    alice = make_key(service)
    job = run_a_job(service, alice)
    for path in ("", "/result", "/maps/depth"):
        assert service.http.get(job["url"] + path, headers=alice).status_code == 200
    assert read_events(service.http, job["url"] + "/events", alice)[-1][2]["status"] == "succeeded"
    assert service.http.delete(job["url"], headers=alice).status_code == 204


def test_a_list_holds_ones_own_jobs_only_and_pages_through_them(service):
    callers = {name: make_key(service, name) for name in ("alice", "bob")}
    ids = {name: [] for name in callers}
    for _ in range(3):
        for name, headers in callers.items():
            ids[name].append(upload(service.http, headers=headers).json()["id"])
    for name, headers in callers.items():
        page = service.http.get("/v1/jobs", params={"limit": 2}, headers=headers).json()
        cursor = page["next_cursor"]
        rest = service.http.get("/v1/jobs", params={"limit": 2, "cursor": cursor}, headers=headers).json()
        assert [job["id"] for job in page["jobs"] + rest["jobs"]] == ids[name][::-1]
        assert rest["next_cursor"] is None
    nobodys = make_key(service, "new")
    assert service.http.get("/v1/jobs", headers=nobodys).json() == {"jobs": [], "next_cursor": None}


def test_jobs_from_before_there_were_keys_are_no_key_holders(service):
    job = upload(service.http).json()
    headers = make_key(service)
    assert_problem(service.http.get(job["url"], headers=headers), 404, "job-not-found")
    assert service.http.get("/v1/jobs", headers=headers).json()["jobs"] == []


def test_the_same_idempotency_key_of_two_callers_is_two_keys(service):
    alice, bob = (make_key(service, name) | {"Idempotency-Key": "order-66"} for name in ("alice", "bob"))
    first = upload(service.http, headers=alice, seed="1")
    other = upload(service.http, headers=bob, seed="2")  # would be refused as reused, and tell that it was
    assert (first.status_code, other.status_code) == (202, 202)
    assert first.json()["id"] != other.json()["id"]
    assert "idempotency-replayed" not in other.headers
    again = upload(service.http, headers=alice, seed="1")
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (first.json()["id"], "true")


def test_a_secret_is_in_no_log_no_answer_and_not_in_redis(serve, logs):
    service = serve(requests_per_minute=3)
    key, secret = service.context.keys.create("camera")
    altered = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    told = []
    for used in (secret, altered):
        for headers in (bearer(used), {"X-API-Key": used}):
            told.append(upload(service.http, headers=headers))
            told.append(upload(service.http, picture()[:40], headers=headers))
            told.append(service.http.get("/v1/jobs/0123", headers=headers))
    service.context.redis.hset(f"m3esr:api-key:{key.id}", "base", "broken")
    told.append(service.http.get("/v1/jobs", headers=bearer(secret)))
    assert {answer.status_code for answer in told} >= {202, 401, 404, 422, 429, 500}
    everywhere = json.dumps(logs, default=repr) + everything_in(service.context.redis)
    everywhere += "".join(answer.text + str(answer.headers) for answer in told)
    for text in (secret, secret[-43:], altered[-43:]):
        assert text not in everywhere


def test_a_request_is_logged_with_the_id_of_its_key(service, logs):
    key, secret = service.context.keys.create("camera")
    upload(service.http, headers=bearer(secret))
    service.http.get("/v1/jobs")
    told = [(line["status"], line.get("api_key_id")) for line in logs if line["event"] == "request"]
    assert told == [(202, key.id), (401, None)]
    assert next(line for line in logs if line["event"] == "job_accepted")["api_key_id"] == key.id


def test_while_redis_is_away_nobody_is_let_in(tmp_path):
    redis_server = RedisServer(tmp_path)
    settings = Settings(redis_url=redis_server.url, storage_url=str(tmp_path / "storage"), host="0.0.0.0")
    with serving(settings) as service:
        for headers in ({}, bearer("m3esr_" + "0" * 16 + "_" + "A" * 43)):
            for method, path in V1_ROUTES:
                assert_problem(service.http.request(method, path, headers=headers), 503, "redis-unavailable")
        try:
            redis_server.start()
            assert_unauthorized(service.http.get("/v1/jobs"))
            headers = make_key(service)
            assert service.http.get("/v1/jobs", headers=headers).status_code == 200
            redis_server.stop()
            assert_problem(service.http.get("/v1/jobs", headers=headers), 503, "redis-unavailable")
        finally:
            redis_server.stop()


def test_the_command_line_sends_the_key_of_its_environment(service, monkeypatch, capsys, tmp_path):
    headers, image = make_key(service), tmp_path / "in.png"
    image.write_bytes(picture())
    submit = ("submit", str(image), "--url", str(service.http.base_url))
    for is_empty in (False, True):
        if is_empty:
            monkeypatch.setenv("M3ESR_API_KEY", "")
        code, _, err = run(monkeypatch, capsys, *submit)
        assert code == 2 and "Send a valid API key" in err and err.count("\n") == 1
    secret = headers["Authorization"].removeprefix("Bearer ")
    assert run(monkeypatch, capsys, *submit, "--api-key", secret)[0] == 0
    monkeypatch.setenv("M3ESR_API_KEY", secret)
    code, out, _ = run(monkeypatch, capsys, *submit)
    assert code == 0
    assert service.http.get(out.strip(), headers=headers).json()["status"] == "queued"
