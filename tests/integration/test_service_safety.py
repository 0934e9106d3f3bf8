"""Errors and limits of the API: every refusal is a problem, and Redis may go away."""

import json
import time

import pytest

from jobs import Settings
from tests.conftest import RedisServer
from tests.fakes import picture
from tests.integration.serving import serving, upload


def assert_problem(answer, status, code):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["type"] == f"urn:m3esr:problem:{code}"
    assert (problem["status"], problem["instance"]) == (status, answer.request.url.path)
    assert problem["title"] and problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/web/../app.py", 404, "not-found"),
        ("GET", "/web/secret.py", 404, "not-found"),
        ("PUT", "/v1/upscale", 405, "method-not-allowed"),
        ("GET", "/v1/jobs/0123", 404, "job-not-found"),
        ("GET", "/v1/jobs/0123/result", 404, "job-not-found"),
        ("GET", "/v1/jobs/0123/events", 404, "job-not-found"),
        ("GET", "/v1/jobs/0123/maps/depth", 404, "job-not-found"),
        ("DELETE", "/v1/jobs/0123", 404, "job-not-found"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid-option"),
        ("GET", "/v1/jobs?cursor=x", 422, "invalid-option"),
        ("POST", "/v1/upscale", 400, "malformed-form"),
    ],
)
def test_every_refusal_is_a_problem(service, method, path, status, code):
    assert_problem(service.http.request(method, path), status, code)


def test_a_map_that_is_not_there_is_a_problem(service):
    job = upload(service.http).json()
    service.worker.run_next()
    for name in ("smell", "depth.exe", "depth.png.npy"):
        assert_problem(service.http.get(f"{job['url']}/maps/{name}"), 404, "map-not-found")


@pytest.mark.parametrize(
    ("send", "status", "code", "field"),
    [
        (lambda http: upload(http, b""), 422, "empty-file", "file"),
        (lambda http: upload(http, b"not an image"), 422, "unsupported-format", "file"),
        (lambda http: upload(http, picture(64, 64)[:900]), 422, "invalid-image", "file"),
        (lambda http: upload(http, webhook_url="https://example.org"), 422, "invalid-option", "webhook_url"),
        (lambda http: upload(http, scale="9"), 422, "invalid-option", "scale"),
        (lambda http: upload(http, profile="best"), 422, "unknown-profile", "profile"),
        (lambda http: http.post("/v1/upscale", files={"x": b"1"}), 422, "invalid-option", "x"),
        (lambda http: http.post("/v1/upscale", files={"scale": (None, "2")}), 422, "missing-file", "file"),
        (
            lambda http: http.post("/v1/upscale", files=[("file", ("a", b"1")), ("file", ("b", b"2"))]),
            400,
            "malformed-form",
            None,
        ),
        (
            lambda http: http.post(
                "/v1/upscale", content=b"junk", headers={"content-type": "multipart/form-data; boundary=x"}
            ),
            400,
            "malformed-form",
            None,
        ),
    ],
)
def test_a_bad_upload_is_named_and_leaves_nothing(service, send, status, code, field):
    problem = assert_problem(send(service.http), status, code)
    assert problem.get("field") == field
    assert service.context.blobs.keys() == []
    assert service.context.redis.keys("*") == []


def test_a_body_over_the_cap_is_refused_with_and_without_a_declared_length(serve):
    service = serve(max_upload_bytes=10_000)
    assert_problem(upload(service.http, bytes(20_000)), 413, "body-too-large")

    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(1000)

    streamed = service.http.post(
        "/v1/upscale", content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert_problem(streamed, 413, "body-too-large")
    assert service.context.blobs.keys() == []


def test_too_many_pixels_are_refused(serve):
    service = serve(max_input_pixels=100)
    assert "16x12" in assert_problem(upload(service.http), 422, "too-many-pixels")["detail"]


def test_answers_carry_a_request_id_and_security_headers(service):
    answer = service.http.get("/livez", headers={"X-Request-Id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    forged = service.http.get("/livez", headers={"X-Request-Id": "a b<script>"})
    assert forged.headers["x-request-id"] != "a b<script>"


def test_a_fault_of_ours_tells_the_caller_nothing_of_our_insides(service):
    job = upload(service.http).json()
    service.context.redis.hset(f"m3esr:job:{job['id']}", "base", "secret and broken")
    problem = assert_problem(service.http.get(job["url"]), 500, "internal-error")
    assert "secret" not in json.dumps(problem)


def test_ready_means_that_a_worker_would_run_a_job(service):
    assert service.http.get("/livez").json()["status"] == "alive"
    assert_problem(service.http.get("/readyz"), 503, "no-worker")
    service.worker.announce(is_ready=False)
    assert_problem(service.http.get("/readyz"), 503, "no-worker")
    service.worker.announce()
    assert service.http.get("/readyz").json() == {"status": "ready", "ready_workers": 1}


def test_profiles_tell_licences_limits_and_who_serves_them(service):
    service.worker.announce()
    answer = service.http.get("/v1/profiles").json()
    compact, quality, _ = answer["profiles"]
    assert (compact["name"], compact["is_default"], compact["num_ready_workers"]) == ("compact", True, 1)
    assert (quality["is_installed"], quality["is_served"], quality["num_ready_workers"]) == (False, False, 0)
    assert any(not licence["is_commercial_use_allowed"] for licence in quality["licences"])
    assert answer["limits"]["max_output_pixels"] == Settings().max_output_pixels


def test_metrics_count_jobs_queues_and_refusals(service):
    upload(service.http)
    upload(service.http, b"junk")
    service.worker.announce()
    text = service.http.get("/metrics").text
    for line in (
        "m3esr_redis_up 1.0",
        'm3esr_queue_depth{queue="compact"} 1.0',
        'm3esr_workers{profile="compact",state="ready"} 1.0',
        'm3esr_uploads_rejected_total{code="unsupported-format"} 1.0',
        'm3esr_http_requests_total{method="POST",route="/v1/upscale",status="202"} 1.0',
        "m3esr_jobs_accepted_total 1.0",
        "m3esr_input_megapixels_count 1.0",
    ):
        assert line in text.splitlines()
    assert "m3esr_queue_oldest_age_seconds" in text
    service.worker.run_next()
    ended = 'm3esr_jobs_total{profile="compact",reason="",state="succeeded"} 1.0'
    assert ended in service.http.get("/metrics").text.splitlines()


def test_each_request_is_logged_with_its_id_and_its_job(service, logs):
    answer = upload(service.http, headers={"X-Request-Id": "abc-1"})
    accepted = next(line for line in logs if line["event"] == "job_accepted")
    assert (accepted["job_id"], accepted["request_id"]) == (answer.json()["id"], "abc-1")
    service.http.get(answer.json()["url"])
    requests = [line for line in logs if line["event"] == "request"]
    assert [line["job_id"] for line in requests] == [accepted["job_id"]] * 2
    assert requests[0]["request_id"] == "abc-1"


def test_while_redis_is_away_answers_are_quick_503s_and_then_it_recovers(tmp_path):
    redis_server = RedisServer(tmp_path)
    settings = Settings(redis_url=redis_server.url, storage_url=str(tmp_path / "storage"))
    with serving(settings) as service:  # it starts without Redis
        for ask in (
            lambda: upload(service.http),
            lambda: service.http.get("/v1/jobs/0123"),
            lambda: service.http.get("/readyz"),
        ):
            started = time.perf_counter()
            answer = ask()
            assert time.perf_counter() - started < 1
            assert_problem(answer, 503, "redis-unavailable")
            assert answer.headers["retry-after"] == "2"
        assert service.http.get("/livez").status_code == 200
        assert "m3esr_redis_up 0.0" in service.http.get("/metrics").text
        assert service.context.blobs.keys() == []
        try:
            redis_server.start()
            job = upload(service.http).json()
            redis_server.stop()
            assert service.http.get(job["url"]).status_code == 503
            redis_server.start()
            assert service.http.get(job["url"]).json()["status"] == "queued"
        finally:
            redis_server.stop()


def test_the_pages_load_nothing_from_elsewhere(service):
    for path in ("/", "/docs", "/web/app.js", "/web/result.js", "/web/docs.js", "/web/style.css"):
        answer = service.http.get(path)
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org", "")
        assert "https://" not in answer.text
        assert ".innerHTML" not in answer.text  # whatever is shown is set as text
