"""Images by address: off until allowed, then only from public addresses, whole, in time, and for what they are."""

import asyncio
import gzip
import time

import pytest

from jobs import JobError, Settings
from service.fetching import Fetcher
from tests.fakes import picture
from tests.integration.test_service_safety import assert_problem
from tests.receivers import receiving
from tests.unit.service.test_outbound_addresses import NEVER, ON_PREMISES
from tests.unit.service.test_outbound_guard import ChangingDns

OPEN = {"allow_url_input": True, "url_input_allow_http": True, "url_input_allow_private": True}


@pytest.fixture
def host():
    with receiving() as host:
        host.answers, host.body = [200], picture()
        yield host


def send(service, url, **fields):
    return service.http.post("/v1/upscale", files={"url": (None, url)}, data=fields)


def test_an_image_is_fetched_and_becomes_a_job_like_one_that_was_sent(serve, host):
    service = serve(**OPEN)
    job = send(service, host.url, scale="2").json()
    assert (job["status"], job["input"]["bytes"], job["input"]["width"]) == ("queued", len(picture()), 16)
    ((_, headers, _),) = host.requests
    assert (headers["User-Agent"], headers["Accept-Encoding"]) == ("m3esr-fetch", "identity")
    assert headers["Authorization"] is headers["Cookie"] is None
    assert "hidden" not in service.http.get(job["url"]).text  # the address may hold a password: it is kept nowhere
    assert service.worker.run_next().status.value == "succeeded"


def test_it_is_off_until_it_is_allowed(service, host):
    problem = assert_problem(send(service, host.url), 422, "invalid-option")
    assert (problem["field"], host.num_connections) == ("url", 0)


@pytest.mark.parametrize(
    ("status", "headers", "body", "code", "words"),
    [
        (302, {"Location": "http://127.0.0.1/"}, b"", "url-not-fetched", "redirects are not followed"),
        (301, {"Location": "/elsewhere"}, picture(), "url-not-fetched", "answered 301"),
        (404, {}, picture(), "url-not-fetched", "answered 404"),
        (206, {}, picture(), "url-not-fetched", "answered 206"),
        (200, {"Content-Encoding": "gzip"}, gzip.compress(picture()), "url-not-fetched", "compressed"),
        (200, {"Content-Length": "9999"}, picture(), "url-not-fetched", "broke off"),
        (200, {"Content-Type": "image/png"}, b"<html></html>", "unsupported-format", "none of PNG"),
        (200, {}, b"", "empty-file", "0 bytes"),
        (200, {}, bytes(60_000), "body-too-large", "50000"),
        (200, {"Content-Type": "text/html"}, picture(), None, ""),
    ],
)
def test_what_is_not_a_whole_image_is_refused_and_leaves_nothing(serve, host, status, headers, body, code, words):
    service = serve(**OPEN, max_upload_bytes=50_000)
    host.answers, host.headers, host.body = [status], headers, body
    answer = send(service, host.url)
    if code is None:  # the decoder says what it is, not its sender
        assert answer.status_code == 202
        return
    assert words in assert_problem(answer, 413 if code == "body-too-large" else 422, code)["detail"]
    assert (len(host.requests), service.context.blobs.keys()) == (1, [])


@pytest.mark.parametrize("way", ["hold", "drip"])
def test_a_server_that_takes_its_time_is_left(serve, host, way):
    service = serve(**OPEN, url_input_seconds=0.4)
    setattr(host, f"{way}_seconds", 3)
    started = time.monotonic()
    problem = assert_problem(send(service, host.url), 422, "url-not-fetched")
    assert "within 0.4 s" in problem["detail"]
    assert time.monotonic() - started < 2.5


def test_a_file_or_its_url_and_no_other_fields(serve, host):
    service = serve(**OPEN)
    both = {"file": ("a.png", picture()), "url": (None, host.url)}
    assert_problem(service.http.post("/v1/upscale", files=both), 422, "invalid-option")
    assert_problem(service.http.post("/v1/upscale", files={"scale": (None, "2")}), 422, "missing-file")
    batch = service.http.post("/v1/batches", files={"url": (None, host.url)})
    assert_problem(batch, 422, "missing-file")
    assert host.num_connections == 0


def refusal(url, lookup=None, **settings):
    fetcher = Fetcher(Settings(allow_url_input=True, **settings), **({"lookup": lookup} if lookup else {}))
    with pytest.raises(JobError) as raised:
        asyncio.run(fetcher.fetch(url))
    return raised.value


@pytest.mark.parametrize("address", [address for address in (*NEVER, *ON_PREMISES) if address])
def test_no_address_that_is_not_public_is_ever_asked(address):
    for url in (f"https://{f'[{address}]' if ':' in address else address}/a.png", "https://name.test/a.png"):
        error = refusal(url, lambda name, port: [address], url_input_allow_http=True)
        assert (error.code, error.field) == ("invalid-option", "url")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a.test/", "http://a.test/", "//a.test/", "https://me:pw@a.test/", "gopher://x"]
)
def test_other_ways_to_name_things_are_refused(url):
    assert refusal(url, lambda name, port: pytest.fail("it was looked up")).code == "invalid-option"


def test_a_private_address_and_a_name_that_does_not_exist_sound_the_same(host):
    def lookup(name, port):
        if name == "none.test":
            raise OSError
        return ["10.0.0.1"]

    first, second = (refusal(f"https://{name}.test/", lookup).detail for name in ("none", "private"))
    assert first == second


def test_a_name_that_changes_its_address_is_asked_once_and_only_that_address_is_connected_to(host):
    """DNS rebinding: whatever the second answer would be, there is no second question."""
    dns = ChangingDns(["127.0.0.1"], ["127.0.0.2"])
    fetcher = Fetcher(Settings(**OPEN), lookup=dns)
    assert asyncio.run(fetcher.fetch(f"http://rebind.test:{host.port}/a.png")) == picture()
    assert (dns.asked, host.num_connections) == (1, 1)
    closed = Settings(**{**OPEN, "url_input_allow_private": False})
    with pytest.raises(JobError, match="invalid-option"):
        asyncio.run(Fetcher(closed, lookup=dns).fetch(f"http://rebind.test:{host.port}/a.png"))
    assert host.num_connections == 1
