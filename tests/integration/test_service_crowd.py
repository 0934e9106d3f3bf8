"""More uploads than decoders: the late ones are refused in time, and everything else answers meanwhile."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.decoding import NUM_HELPERS, Helper
from service.waiting import MAX_HELD_BODIES
from tests.fakes import picture
from tests.integration.serving import upload
from tests.integration.test_service_safety import assert_problem

CROWD = 60  # more than the threads of the pool, which are 40
PROMPT_SECONDS = 5.0  # on a busy machine; what hangs takes as long as the uploads wait


@pytest.fixture
def slow_decoders(monkeypatch):
    """Decoders that do nothing until the event is set; `begun` counts the uploads that have one."""
    go_on, begun, ask = threading.Event(), [], Helper.ask

    def ask_when_told(self, request, data, check):
        begun.append(len(data))
        assert go_on.wait(120)
        return ask(self, request, data, check)

    monkeypatch.setattr(Helper, "ask", ask_when_told)
    go_on.begun = begun
    yield go_on
    go_on.set()


def await_true(is_so, seconds=20.0):
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)


def timed_upload(url, data=None):
    """The answer and the seconds it took, on a connection of its own."""
    with httpx.Client(base_url=url, timeout=90, trust_env=False) as http:
        started = time.monotonic()
        return upload(http, data), time.monotonic() - started


def test_a_crowd_of_uploads_holds_nothing_else_up_and_is_refused_in_time(serve, slow_decoders):
    wait_seconds = 8.0
    service = serve(decode_wait_seconds=wait_seconds, max_upload_bytes=1_000_000)
    service.worker.announce()
    slow_decoders.set()
    job = upload(service.http).json()
    slow_decoders.clear()
    slow_decoders.begun.clear()
    url = str(service.http.base_url)
    with ThreadPoolExecutor(CROWD) as clients:
        answers = [clients.submit(timed_upload, url) for _ in range(CROWD)]
        await_true(lambda: service.context.waiting_room.held_bytes == CROWD * len(picture()))
        started = time.monotonic()
        for path in ("/livez", "/readyz", "/metrics", "/v1/jobs", job["url"], job["url"] + "/events"):
            with service.http.stream("GET", path) as answer:
                assert answer.status_code == 200, path
                assert next(answer.iter_raw())
        assert service.http.delete(job["url"]).json()["status"] == "canceled"
        assert time.monotonic() - started < PROMPT_SECONDS
        assert not any(answer.done() for answer in answers)
        await_true(lambda: sum(answer.done() for answer in answers) == CROWD - NUM_HELPERS, 60)
        slow_decoders.set()
        told = [answer.result() for answer in answers]
    refused = [(answer, seconds) for answer, seconds in told if answer.status_code != 202]
    assert (len(refused), len(slow_decoders.begun)) == (CROWD - NUM_HELPERS, NUM_HELPERS)
    for answer, seconds in refused:
        assert "8 s" in assert_problem(answer, 503, "decoders-busy")["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert wait_seconds <= seconds < wait_seconds + 2 * PROMPT_SECONDS
    assert service.context.waiting_room.held_bytes == 0
    assert upload(service.http).status_code == 202
    text = service.http.get("/metrics").text
    assert f'm3esr_uploads_rejected_total{{code="decoders-busy"}} {CROWD - NUM_HELPERS}.0' in text.splitlines()


def test_large_bodies_beyond_what_is_kept_for_them_are_refused_at_once(serve, slow_decoders):
    service = serve(decode_wait_seconds=60, max_upload_bytes=1_000_000)
    large, url = picture(16, 12) + bytes(990_000), str(service.http.base_url)
    with ThreadPoolExecutor(MAX_HELD_BODIES) as clients:
        answers = [clients.submit(timed_upload, url, large) for _ in range(MAX_HELD_BODIES)]
        await_true(lambda: service.context.waiting_room.held_bytes == MAX_HELD_BODIES * len(large))
        answer, seconds = timed_upload(url, large)
        assert "3.81 MiB" in assert_problem(answer, 503, "decoders-busy")["detail"]
        assert seconds < PROMPT_SECONDS
        assert service.context.waiting_room.held_bytes == MAX_HELD_BODIES * len(large)
        slow_decoders.set()
        assert {answer.result()[0].status_code for answer in answers} == {202}
    assert service.context.waiting_room.held_bytes == 0
    assert timed_upload(url, large)[0].status_code == 202


def test_a_batch_waits_like_any_upload_and_is_accepted_or_refused_whole(serve, slow_decoders):
    service = serve(decode_wait_seconds=1.0)
    files = [("file", ("a.png", picture())), ("file", ("b.png", picture()))]
    with ThreadPoolExecutor(NUM_HELPERS) as clients:
        busy = [clients.submit(timed_upload, str(service.http.base_url)) for _ in range(NUM_HELPERS)]
        await_true(lambda: len(slow_decoders.begun) == NUM_HELPERS)
        problem = assert_problem(service.http.post("/v1/batches", files=files), 503, "decoders-busy")
        assert "field" not in problem  # it is no fault of a file
        slow_decoders.set()
        assert {answer.result()[0].status_code for answer in busy} == {202}
    answer = service.http.post("/v1/batches", files=files)
    assert (answer.status_code, len(answer.json()["jobs"])) == (202, 2)
    assert service.context.waiting_room.held_bytes == 0


def test_callers_who_hang_up_while_they_wait_leave_their_place(serve, slow_decoders):
    service = serve(decode_wait_seconds=60)
    url, room, size = str(service.http.base_url), service.context.waiting_room, len(picture())
    with ThreadPoolExecutor(NUM_HELPERS) as clients:
        busy = [clients.submit(timed_upload, url) for _ in range(NUM_HELPERS)]
        await_true(lambda: len(slow_decoders.begun) == NUM_HELPERS)
        with contextlib.ExitStack() as connections:
            for _ in range(5):
                connections.enter_context(sent(service.http, picture()))
            await_true(lambda: room.held_bytes == (NUM_HELPERS + 5) * size)
        await_true(lambda: room.held_bytes == NUM_HELPERS * size)  # long before their 60 s
        slow_decoders.set()
        assert {answer.result()[0].status_code for answer in busy} == {202}
    assert len(slow_decoders.begun) == NUM_HELPERS  # nobody decoded what nobody waits for
    for _ in range(2 * NUM_HELPERS):
        assert upload(service.http).status_code == 202
    assert room.held_bytes == 0
    assert service.context.queue.depth("compact") == 3 * NUM_HELPERS


def sent(http, data):
    """A connection on which a whole upload was sent and no answer was read."""
    request = http.build_request("POST", "/v1/upscale", files={"file": ("photo.png", data)})
    body = request.read()
    connection = socket.create_connection((http.base_url.host, http.base_url.port))
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection.sendall(f"POST /v1/upscale HTTP/1.1\r\n{head}\r\n".encode() + body)
    return connection
