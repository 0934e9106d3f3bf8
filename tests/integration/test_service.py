"""The API over real HTTP and a real Redis: from upload to result."""

import hashlib
import io
import json
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image

from jobs import input_key, new_job_id
from tests.fakes import picture
from tests.integration.serving import upload


def test_an_image_becomes_a_job_and_the_job_a_larger_image(service):
    answer = upload(service.http, prompt="a boat", seed="7")
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["url"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["queue"], job["result"], job["maps"]) == (
        "queued",
        {"position": 0, "eta_seconds": None},
        None,
        {},
    )
    assert (job["options"]["prompt"], job["seed"], job["input"]["width"]) == ("a boat", 7, 16)
    service.worker.run_next()

    done = service.http.get(job["url"]).json()
    assert (done["status"], done["attempts"], done["queue"], done["error"]) == ("succeeded", 1, None, None)
    assert (done["model"]["checkpoint"], done["fusion"], done["caption"]) == ("fake", "trained", "noise")
    assert done["temperatures"]["sigma"] == [1.0, 0.5]
    assert done["trust"]["lr_consistency_psnr"] == 40.0
    image = service.http.get(done["result"]["url"])
    assert image.headers["content-type"] == "image/png"
    assert hashlib.sha256(image.content).hexdigest() == done["result"]["sha256"]
    assert Image.open(io.BytesIO(image.content)).size == (64, 48) == (done["result"]["width"], done["result"]["height"])
    again = service.http.get(done["result"]["url"], headers={"If-None-Match": image.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_input_reaches_the_storage_byte_for_byte_and_never_redis(service):
    data = picture(32, 32, "JPEG")
    job = upload(service.http, data).json()
    assert service.context.blobs.get(f"{job['id']}/input") == data
    held = service.context.redis.hgetall(f"m3esr:job:{job['id']}")
    assert sum(len(value) for value in held.values()) < 3000


def test_maps_come_as_heat_maps_and_as_values(service):
    job = upload(service.http).json()
    service.worker.run_next()
    entry = service.http.get(job["url"]).json()["maps"]["depth"]
    assert (entry["mean"], entry["quantiles"]) == (0.5, {"p50": 0.5})
    assert service.http.get(entry["url"]).headers["content-type"] == "image/png"
    for answer in (
        service.http.get(entry["npy_url"]),
        service.http.get(entry["url"], headers={"Accept": "application/x-npy"}),
    ):
        assert answer.headers["content-type"] == "application/x-npy"
        assert np.load(io.BytesIO(answer.content)).shape == (3, 4)


def test_prefer_wait_answers_with_the_finished_job(service):
    with service.worker.running():
        answer = upload(service.http, headers={"Prefer": "respond-async, wait=30"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=30"


def test_prefer_wait_gives_up_in_time(service):
    answer = upload(service.http, headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=0"


def test_the_same_key_and_request_make_one_job(service):
    headers = {"Idempotency-Key": "order-66"}
    first, second = (upload(service.http, headers=headers, seed="1") for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    other = upload(service.http, headers=headers, seed="2")
    assert (other.status_code, other.json()["type"]) == (422, "urn:m3esr:problem:idempotency-key-reused")
    assert service.context.queue.depth("compact") == 1


def test_a_key_used_at_once_by_many_makes_one_job(service):
    ids = []

    def send():
        ids.append(upload(service.http, headers={"Idempotency-Key": "rush"}).json()["id"])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ids), len(set(ids))) == (8, 1)
    assert service.context.queue.depth("compact") == 1


def test_a_key_of_a_request_that_was_refused_can_be_used_again(serve):
    service = serve(max_queue_length=1)
    blocking = upload(service.http).json()
    headers = {"Idempotency-Key": "patience"}
    assert upload(service.http, headers=headers).status_code == 429
    service.http.delete(blocking["url"])
    assert upload(service.http, headers=headers).status_code == 202


def test_a_full_queue_answers_429_and_keeps_nothing_of_the_upload(serve):
    service = serve(max_queue_length=1)
    accepted = upload(service.http).json()
    refused = upload(service.http)
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:m3esr:problem:queue-full")
    assert int(refused.headers["retry-after"]) > 0
    assert service.context.blobs.keys() == [f"{accepted['id']}/input"]


def test_a_queued_job_is_canceled_at_once_and_deleted_when_asked_again(service):
    job = upload(service.http).json()
    canceled = service.http.delete(job["url"])
    assert (canceled.status_code, canceled.json()["status"]) == (202, "canceled")
    assert service.http.get(job["url"] + "/result").json()["type"] == "urn:m3esr:problem:job-canceled"
    assert service.worker.run_next() is None
    assert service.http.delete(job["url"]).status_code == 204
    assert service.http.delete(job["url"]).status_code == 404
    assert service.context.blobs.keys() == []


def test_a_running_job_stops_at_its_next_step(service):
    job = upload(service.http).json()
    with service.worker.running(step_seconds=0.3):
        wait_for(lambda: service.http.get(job["url"]).json()["progress"])
        answer = service.http.delete(job["url"])
        assert (answer.status_code, answer.json()["cancel_requested"]) == (202, True)
        wait_for(lambda: service.http.get(job["url"]).json()["status"] == "canceled")


def wait_for(is_so, seconds=10.0):
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if is_so():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen in time")


def test_jobs_are_listed_page_by_page_with_a_cursor(service):
    ids = [upload(service.http).json()["id"] for _ in range(3)]
    page = service.http.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["jobs"]] == ids[:0:-1]
    assert [job["queue"]["position"] for job in page["jobs"]] == [2, 1]
    last = service.http.get("/v1/jobs", params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert ([job["id"] for job in last["jobs"]], last["next_cursor"]) == ([ids[0]], None)


def read_events(http, url, headers=None):
    events, current = [], {}
    with http.stream("GET", url, headers=headers or {}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                current[name] = value
            elif not line and "data" in current:
                events.append((int(current["id"]), current["event"], json.loads(current["data"])))
                current = {}
    return events


def test_events_tell_state_and_progress_until_the_end(service):
    job = upload(service.http).json()
    with service.worker.running(step_seconds=0.3):
        events = read_events(service.http, job["url"] + "/events")
    assert [version for version, _, _ in events] == sorted({version for version, _, _ in events})
    names = [name for _, name, _ in events]
    assert (names[0], names[-1]) == ("status", "status")
    assert "progress" in names
    assert events[-1][2]["status"] == "succeeded"
    last_id = events[-1][0]
    assert read_events(service.http, job["url"] + "/events", {"Last-Event-ID": str(last_id)}) == []
    replayed = read_events(service.http, job["url"] + "/events", {"Last-Event-ID": str(last_id - 1)})
    assert [version for version, _, _ in replayed] == [last_id]


@pytest.mark.parametrize("path", ["/result", "/maps/depth"])
def test_files_of_a_job_that_is_not_done_are_a_conflict(service, path):
    job = upload(service.http).json()
    answer = service.http.get(job["url"] + path)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:m3esr:problem:job-not-finished")
    assert answer.headers["retry-after"] == "1"


def test_an_expired_job_says_so_and_its_files_are_gone(service):
    from service.sweeper import sweep_once

    job = upload(service.http, ttl_seconds="60").json()
    service.worker.run_next()
    assert sweep_once(service.context.store, service.context.blobs) == 0
    service.context.redis.zadd("m3esr:expiry", {job["id"]: 0})
    assert sweep_once(service.context.store, service.context.blobs) == 1
    assert service.context.blobs.keys() == []
    expired = service.http.get(job["url"]).json()
    assert (expired["status"], expired["result"], expired["maps"]) == ("expired", None, {})
    answer = service.http.get(job["url"] + "/result")
    assert (answer.status_code, answer.json()["type"]) == (410, "urn:m3esr:problem:job-expired")


def test_files_without_a_job_are_swept_after_an_hour_and_those_of_jobs_are_not(service):
    from service.sweeper import sweep_orphans

    store, blobs = service.context.store, service.context.blobs
    accepted, orphan, foreign = upload(service.http).json()["id"], new_job_id(), "holiday-photos"
    blobs.put(input_key(orphan), b"an upload whose service died")
    blobs.put(input_key(foreign), b"somebody else's file in the same bucket")
    assert sweep_orphans(store, blobs) == 0  # it may still become a job
    assert sweep_orphans(store, blobs, datetime.now(UTC) + timedelta(hours=2)) == 1
    assert sorted(blobs.keys()) == sorted([input_key(accepted), input_key(foreign)])
