"""Limits: what is counted, what is given back, and what the headers tell."""

import threading

import pytest

from jobs import ApiKey, JobError, Settings
from jobs.record import utc
from service.caller import Caller
from service.throttle import PIXELS, Throttle

ALICE = Caller("a" * 16, requests_per_minute=3, megapixels_per_day=2)
BOB = Caller("b" * 16, requests_per_minute=3, megapixels_per_day=2)
FREE = Caller("c" * 16, requests_per_minute=0, megapixels_per_day=0)


@pytest.fixture
def throttle(redis):
    return Throttle(redis)


def refusal(call, *arguments):
    with pytest.raises(JobError) as raised:
        call(*arguments)
    return raised.value


def test_a_minute_holds_so_many_requests_and_no_more(throttle):
    for _ in range(3):
        throttle.admit(ALICE)
    error = refusal(throttle.admit, ALICE)
    assert (error.code, error.status) == ("rate-limited", 429)
    assert 58 <= error.retry_after_seconds <= 60
    throttle.admit(BOB)  # another key's count is another


def test_a_refused_request_does_not_lengthen_the_wait(redis, throttle):
    for _ in range(3):
        throttle.admit(ALICE)
    for _ in range(5):
        refusal(throttle.admit, ALICE)
    (name,) = redis.keys("m3esr:limits:*")
    assert redis.llen(name) == 3


def test_a_day_holds_so_many_pixels(throttle):
    throttle.charge(ALICE, 1_500_000)
    error = refusal(throttle.charge, ALICE, 600_000)
    assert (error.code, error.status) == ("quota-exceeded", 429)
    assert 86_398 <= error.retry_after_seconds <= 86_400
    assert "0.5 of 2 are left" in error.detail
    throttle.charge(ALICE, 500_000)  # what is left may be used, and the refused job took nothing of it
    throttle.charge(BOB, 2_000_000)


def test_a_job_that_no_day_could_hold_is_no_matter_of_waiting(throttle):
    error = refusal(throttle.charge, ALICE, 2 * PIXELS + 1)
    assert (error.code, error.status, error.retry_after_seconds) == ("too-many-pixels", 422, None)


def test_a_refund_gives_back_what_was_charged_and_never_more(throttle):
    throttle.charge(ALICE, 2 * PIXELS)
    throttle.refund(ALICE, 2 * PIXELS)
    throttle.refund(ALICE, 2 * PIXELS)  # as over midnight: the count it was taken from is gone
    throttle.charge(ALICE, 2 * PIXELS)
    assert refusal(throttle.charge, ALICE, 1).code == "quota-exceeded"


def test_many_at_once_get_no_more_than_the_quota(throttle):
    outcomes = []

    def charge():
        try:
            throttle.charge(ALICE, 400_000)
            outcomes.append("charged")
        except JobError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=charge) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= outcomes.count("charged") <= 5
    assert set(outcomes) <= {"charged", "quota-exceeded"}


def test_a_charge_that_lost_a_race_takes_nothing(throttle, monkeypatch):
    throttle.charge(ALICE, 1_500_000)
    monkeypatch.setattr(throttle._pixels, "test", lambda *_, **__: True)  # as when another came in between
    assert refusal(throttle.charge, ALICE, 600_000).code == "quota-exceeded"
    throttle.charge(ALICE, 500_000)


def test_without_limits_nothing_is_counted_and_nothing_told(redis, throttle):
    for _ in range(50):
        throttle.admit(FREE)
    throttle.charge(FREE, 10**12)
    throttle.refund(FREE, 10**12)
    assert throttle.headers(FREE) == {}
    assert redis.keys("*") == []


def test_the_headers_tell_policy_and_state(throttle):
    throttle.admit(ALICE)
    throttle.charge(ALICE, 500_000)
    told = throttle.headers(ALICE)
    assert told["RateLimit-Policy"] == '"requests";q=3;w=60, "megapixels";q=2;qu="megapixels";w=86400'
    requests, megapixels = told["RateLimit"].split(", ")
    assert requests.startswith('"requests";r=2;t=') and int(requests.rpartition("=")[2]) <= 60
    assert megapixels.startswith('"megapixels";r=1;t=') and int(megapixels.rpartition("=")[2]) <= 86_400


def test_one_limit_alone_is_told_alone(throttle):
    assert "megapixels" not in str(throttle.headers(Caller("a", 3, 0)))
    assert "requests" not in str(throttle.headers(Caller("a", 0, 3)))


@pytest.mark.parametrize(
    ("of_key", "of_server", "in_force"), [(None, 7, 7), (0, 7, 0), (3, 7, 3), (None, 0, 0), (9, 0, 9)]
)
def test_a_keys_own_limit_stands_before_the_servers(of_key, of_server, in_force):
    settings = Settings(requests_per_minute=of_server, megapixels_per_day=of_server)
    key = ApiKey(id="0" * 16, name="x", created_at=utc(0), requests_per_minute=of_key, megapixels_per_day=of_key)
    caller = Caller.of(key, settings)
    assert (caller.requests_per_minute, caller.megapixels_per_day) == (in_force, in_force)
    assert Caller.of(None, settings) == Caller("", of_server, of_server)
