"""Limits over HTTP: requests per minute, output pixels per day, and the headers that tell them."""

import pytest

from tests.fakes import picture
from tests.integration.serving import upload
from tests.integration.test_service_keys import make_key
from tests.integration.test_service_safety import assert_problem

HALF_A_MEGAPIXEL = picture(200, 156)  # 800x624 when enlarged: 499,200 pixels


def left(answer, name):
    """What the `RateLimit` header says is left of a limit."""
    for item in answer.headers["ratelimit"].split(", "):
        told = dict(part.split("=") for part in item.split(";")[1:])
        if item.startswith(f'"{name}"'):
            return int(told["r"])
    raise AssertionError(f"{name} is not in {answer.headers['ratelimit']}")


def test_without_limits_no_header_speaks_of_them(service):
    assert "ratelimit" not in upload(service.http).headers


def test_too_many_uploads_in_a_minute_are_refused_and_other_requests_are_not(serve):
    service = serve(requests_per_minute=2)
    alice, bob = make_key(service, "alice"), make_key(service, "bob")
    answers = [upload(service.http, headers=alice) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert [left(answer, "requests") for answer in answers] == [1, 0, 0]
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=2;w=60'
    assert_problem(answers[2], 429, "rate-limited")
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    url = answers[0].json()["url"]
    for _ in range(5):
        assert service.http.get(url, headers=alice).status_code == 200
        assert "ratelimit" not in service.http.get("/v1/jobs", headers=alice).headers
    assert upload(service.http, headers=bob).status_code == 202
    assert 'm3esr_uploads_rejected_total{code="rate-limited"} 1.0' in service.http.get("/metrics").text


def test_keys_take_turns_and_a_priority_orders_a_keys_own_jobs(serve):
    service = serve(max_queue_length=4)
    alice, bob = make_key(service, "alice"), make_key(service, "bob")
    jobs = [upload(service.http, headers=alice).json() for _ in range(3)]
    jobs.append(upload(service.http, headers=alice, priority="high").json())
    assert_problem(upload(service.http, headers=alice), 429, "queue-full")
    jobs.append(upload(service.http, headers=bob, priority="low").json())
    assert jobs[3]["options"]["priority"] == "high"
    assert [job["queue"]["position"] for job in jobs] == [0, 1, 2, 0, 1]  # as each was sent
    order = [service.worker.run_next(f"run-{n}").id for n in range(5)]
    assert order == [jobs[n]["id"] for n in (3, 4, 0, 1, 2)]
    assert_problem(upload(service.http, headers=bob, priority="urgent"), 422, "invalid-option")


def test_anonymous_callers_share_the_servers_limits(serve):
    service = serve(requests_per_minute=1, megapixels_per_day=1)
    assert upload(service.http).status_code == 202
    assert_problem(upload(service.http), 429, "rate-limited")


def test_a_keys_own_limits_stand_before_the_servers(serve):
    service = serve(requests_per_minute=1, megapixels_per_day=1)
    free = make_key(service, requests_per_minute=0, megapixels_per_day=0)
    answers = [upload(service.http, HALF_A_MEGAPIXEL, headers=free) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {202}
    assert "ratelimit" not in answers[0].headers


def test_the_pixels_of_a_day_are_counted_and_then_refused_with_nothing_kept(serve):
    service = serve(megapixels_per_day=1)
    headers = make_key(service)
    answers = [upload(service.http, HALF_A_MEGAPIXEL, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert_problem(answers[2], 429, "quota-exceeded")
    assert 1 <= int(answers[2].headers["retry-after"]) <= 86_400
    assert answers[2].headers["ratelimit-policy"] == '"megapixels";q=1;qu="megapixels";w=86400'
    assert left(answers[2], "megapixels") == 0
    assert len(service.context.blobs.keys()) == 2
    assert service.context.queue.depth("compact") == 2
    assert upload(service.http, headers=headers, scale="1.1").status_code == 202  # 18x13 still fit


def test_a_job_larger_than_a_whole_day_is_told_so_at_once(serve):
    service = serve(megapixels_per_day=1)
    answer = upload(service.http, picture(300, 300), headers=make_key(service))
    assert "1 a day" in assert_problem(answer, 422, "too-many-pixels")["detail"]
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (lambda http, headers: upload(http, HALF_A_MEGAPIXEL, headers=headers, scale="9"), "invalid-option"),
        (lambda http, headers: upload(http, HALF_A_MEGAPIXEL[:900], headers=headers), "invalid-image"),
        (lambda http, headers: upload(http, HALF_A_MEGAPIXEL, headers=headers, profile="best"), "unknown-profile"),
    ],
)
def test_a_request_refused_for_another_reason_costs_no_pixels(serve, refused, code):
    service = serve(megapixels_per_day=1)
    headers = make_key(service)
    for _ in range(3):
        answer = refused(service.http, headers)
        assert answer.json()["type"].endswith(code)
        assert left(answer, "megapixels") == 1  # refusals tell the limits too
    assert upload(service.http, HALF_A_MEGAPIXEL, headers=headers).status_code == 202


def test_a_job_that_a_full_queue_or_storage_refuses_costs_no_pixels(serve, monkeypatch):
    service = serve(megapixels_per_day=1, max_queue_length=1)
    headers = make_key(service)
    blocking = upload(service.http, picture(4, 4), headers=headers).json()
    # Full before the charge, and full only when the job is created, as when two come at once.
    assert_problem(upload(service.http, HALF_A_MEGAPIXEL, headers=headers), 429, "queue-full")
    monkeypatch.setattr(service.context.queue, "depth", lambda profile: 0)
    for _ in range(3):
        assert_problem(upload(service.http, HALF_A_MEGAPIXEL, headers=headers), 429, "queue-full")
    service.http.delete(blocking["url"], headers=headers)
    assert upload(service.http, HALF_A_MEGAPIXEL, headers=headers).status_code == 202


def test_a_repeated_request_with_its_idempotency_key_costs_pixels_once(serve):
    service = serve(megapixels_per_day=1)
    headers = make_key(service) | {"Idempotency-Key": "order-66"}
    answers = [upload(service.http, HALF_A_MEGAPIXEL, headers=headers) for _ in range(4)]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert {answer.status_code for answer in answers} == {202}
    other = {**headers, "Idempotency-Key": "order-67"}
    assert upload(service.http, HALF_A_MEGAPIXEL, headers=other).status_code == 202


def test_a_key_of_a_request_that_the_quota_refused_can_be_used_again(serve):
    service = serve(megapixels_per_day=1)
    headers = make_key(service)
    for _ in range(2):
        upload(service.http, HALF_A_MEGAPIXEL, headers=headers)
    again = headers | {"Idempotency-Key": "tomorrow"}
    assert_problem(upload(service.http, HALF_A_MEGAPIXEL, headers=again), 429, "quota-exceeded")
    for name in service.context.redis.keys("m3esr:limits:*"):
        service.context.redis.delete(name)  # the next day
    assert upload(service.http, HALF_A_MEGAPIXEL, headers=again).status_code == 202
