"""Batches over HTTP: all files or none, one view of all jobs, one end for all."""

import threading

import pytest

from jobs import JobError, JobOutcome, JobStatus
from service import intake
from tests.fakes import picture
from tests.integration.serving import upload
from tests.integration.test_service_keys import make_key
from tests.integration.test_service_limits import HALF_A_MEGAPIXEL, left
from tests.integration.test_service_safety import assert_problem

NOT_AN_IMAGE = b"not an image"


def send(http, *images, headers=None, **fields):
    """POST these images as one batch; three small ones unless given."""
    images = images or (picture(),) * 3
    files = [("file", (f"photo-{n}.png", data)) for n, data in enumerate(images)]
    return http.post("/v1/batches", files=files, data=fields, headers=headers or {})


def assert_nothing_is_left(service):
    assert service.http.get("/v1/jobs").json()["jobs"] == []
    assert service.context.blobs.keys() == []
    assert service.context.queue.depth("compact") == 0
    assert service.context.redis.keys("m3esr:job:*") == service.context.redis.keys("m3esr:batch:*") == []
    assert service.context.redis.keys("rq:queue:*") == []


def test_a_batch_becomes_jobs_in_the_order_of_its_files(service):
    answer = send(service.http, picture(16, 12), picture(20, 10), prompt="a boat")
    batch = answer.json()
    assert (
        (answer.status_code, answer.headers["location"]) == (202, f"/v1/batches/{batch['id']}") == (202, batch["url"])
    )
    assert [(job["input"]["width"], job["queue"]["position"]) for job in batch["jobs"]] == [(16, 0), (20, 1)]
    assert {(job["options"]["prompt"], job["batch_id"]) for job in batch["jobs"]} == {("a boat", batch["id"])}
    assert service.http.get(batch["url"]).json() == batch


def test_a_batch_tells_how_its_jobs_stand(service):
    batch = send(service.http).json()
    service.worker.run_next()
    service.http.delete(batch["jobs"][1]["url"])
    answer = service.http.get(batch["url"])
    counts = answer.json()["counts"]
    assert counts == {"queued": 1, "running": 0, "succeeded": 1, "failed": 0, "canceled": 1, "expired": 0}
    assert (answer.json()["is_finished"], answer.headers["retry-after"]) == (False, "1")
    while service.context.queue.depth("compact"):  # the dispatch of the canceled one is still in RQ's list
        service.worker.run_next()
    answer = service.http.get(batch["url"])
    assert (answer.json()["is_finished"], "retry-after" in answer.headers) == (True, False)


def test_a_batch_is_canceled_and_then_deleted_whole(service):
    batch = send(service.http).json()
    service.worker.run_next()
    answer = service.http.delete(batch["url"])
    assert (answer.status_code, answer.json()["counts"]["canceled"]) == (202, 2)
    assert answer.json()["counts"]["succeeded"] == 1  # what is done stays
    assert service.http.delete(batch["url"]).status_code == 204
    assert_problem(service.http.delete(batch["url"]), 404, "batch-not-found")
    assert service.context.blobs.keys() == []
    assert service.context.redis.keys("m3esr:batch:*") == []


def test_a_batch_ends_with_the_last_of_its_jobs(service):
    batch = send(service.http, picture()).json()
    url = batch["jobs"][0]["url"]
    service.http.delete(url)
    service.http.delete(url)
    assert_problem(service.http.get(batch["url"]), 404, "batch-not-found")
    assert service.context.redis.keys("m3esr:batch:*") == []


@pytest.mark.parametrize(
    ("bad", "fields", "code", "field"),
    [
        (NOT_AN_IMAGE, {}, "unsupported-format", "file[1]"),
        (b"", {}, "empty-file", "file[1]"),
        (picture(64, 64)[:900], {}, "invalid-image", "file[1]"),
        (picture(40, 12), {"width": "64"}, None, None),
        (picture(8, 12), {"width": "64"}, "invalid-option", "width"),
    ],
)
def test_one_bad_file_refuses_all_and_is_named(service, bad, fields, code, field):
    answer = send(service.http, picture(), bad, picture(), **fields)
    if code is None:
        assert answer.status_code == 202
        return
    problem = assert_problem(answer, 422, code)
    assert (problem["field"], problem["detail"][:25]) == (field, "file[1] ('photo-1.png'): ")
    assert_nothing_is_left(service)
    assert f'm3esr_uploads_rejected_total{{code="{code}"}} 1.0' in service.http.get("/metrics").text


def test_a_queue_without_room_for_all_takes_none(serve):
    service = serve(max_queue_length=3)
    upload(service.http)
    answer = send(service.http)
    assert "no room for 3" in assert_problem(answer, 429, "queue-full")["detail"]
    assert int(answer.headers["retry-after"]) > 0
    assert len(service.context.blobs.keys()) == service.context.queue.depth("compact") == 1
    assert send(service.http, picture(), picture()).status_code == 202


def test_more_files_than_allowed_are_refused(serve):
    service = serve(max_batch_files=2)
    assert service.http.get("/v1/profiles").json()["limits"]["max_batch_files"] == 2
    assert_problem(send(service.http), 422, "too-many-files")
    assert_nothing_is_left(service)


def test_the_cap_on_a_body_holds_for_all_files_together(serve):
    service = serve(max_upload_bytes=3 * len(picture()))
    assert_problem(send(service.http), 413, "body-too-large")


def test_a_batch_without_files_or_with_unknown_fields_is_refused(service):
    assert_problem(service.http.post("/v1/batches", data={"scale": "2"}), 400, "malformed-form")
    assert_problem(service.http.post("/v1/batches", files={"scale": (None, "2")}), 422, "missing-file")
    assert assert_problem(send(service.http, colour="red"), 422, "invalid-option")["field"] == "colour"


def test_a_storage_that_fails_half_way_leaves_nothing(service, monkeypatch):
    stored, put = [], service.context.blobs.put

    def put_once(key, data):
        if stored:
            raise JobError("storage-full", "There is no space left for images.")
        stored.append(key)
        put(key, data)

    monkeypatch.setattr(service.context.blobs, "put", put_once)
    assert_problem(send(service.http), 503, "storage-full")
    assert_nothing_is_left(service)


def test_a_queue_that_fails_half_way_leaves_nothing(service, monkeypatch):
    def enqueue(record):
        raise JobError("internal-error", "The queue broke.")

    monkeypatch.setattr(service.context.queue, "enqueue", enqueue)
    assert_problem(send(service.http), 500, "internal-error")
    assert_nothing_is_left(service)


def test_the_same_key_and_files_make_one_batch(service):
    headers = {"Idempotency-Key": "order-66"}
    first, second = (send(service.http, headers=headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert ("idempotency-replayed" in first.headers, second.headers["idempotency-replayed"]) == (False, "true")
    for other in (send(service.http, picture(), headers=headers), upload(service.http, headers=headers)):
        assert_problem(other, 422, "idempotency-key-reused")
    assert service.context.queue.depth("compact") == 3


@pytest.mark.parametrize("is_looked_at", [False, True])
def test_the_key_of_a_batch_whose_jobs_were_deleted_makes_a_new_one(service, monkeypatch, is_looked_at):
    monkeypatch.setattr(intake, "IN_FLIGHT_SECONDS", 0.1)
    headers = {"Idempotency-Key": "order-66"}
    first = send(service.http, headers=headers).json()
    for job in first["jobs"]:
        assert [service.http.delete(job["url"]).status_code for _ in range(2)] == [202, 204]
    if is_looked_at:
        assert_problem(service.http.get(first["url"]), 404, "batch-not-found")
    answers = [send(service.http, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert ["idempotency-replayed" in answer.headers for answer in answers] == [False, True]
    old, new, same = ({job["id"] for job in batch["jobs"]} for batch in (first, *(a.json() for a in answers)))
    assert (new == same, old & new, service.context.queue.depth("compact")) == (True, set(), 3)


def test_a_batch_that_is_half_done_keeps_what_is_done_until_it_is_deleted_again(service):
    batch = send(service.http).json()
    service.worker.run_next()
    running = service.worker.take("runs")
    answer = service.http.delete(batch["url"])
    assert answer.status_code == 202
    assert [job["status"] for job in answer.json()["jobs"]] == ["succeeded", "running", "canceled"]
    assert service.http.get(batch["jobs"][0]["url"] + "/result").status_code == 200
    assert service.http.delete(batch["url"]).status_code == 202  # one of them stops at its next step
    service.worker.store.finish(running.id, "runs", JobStatus.CANCELED, JobOutcome())
    assert service.http.delete(batch["url"]).status_code == 204
    for job in batch["jobs"]:
        assert_problem(service.http.get(job["url"]), 404, "job-not-found")


def test_a_key_of_a_batch_used_at_once_by_many_makes_one(service):
    ids = []

    def rush():
        ids.append(send(service.http, headers={"Idempotency-Key": "rush"}).json()["id"])

    threads = [threading.Thread(target=rush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ids), len(set(ids)), service.context.queue.depth("compact")) == (4, 1, 3)


def test_anothers_batch_is_an_unknown_one_and_its_jobs_are_its_owners(service):
    alice, bob = make_key(service, "alice"), make_key(service, "bob")
    batch = send(service.http, headers=alice).json()
    for method in ("GET", "DELETE"):
        assert_problem(service.http.request(method, batch["url"], headers=bob), 404, "batch-not-found")
    assert service.http.get("/v1/jobs", headers=bob).json()["jobs"] == []
    assert len(service.http.get("/v1/jobs", headers=alice).json()["jobs"]) == 3


def test_every_file_counts_against_the_limits(serve):
    service = serve(requests_per_minute=5, megapixels_per_day=2)
    headers = make_key(service)
    first = send(service.http, HALF_A_MEGAPIXEL, HALF_A_MEGAPIXEL, HALF_A_MEGAPIXEL, headers=headers)
    assert (first.status_code, left(first, "requests"), left(first, "megapixels")) == (202, 2, 0)
    refused = send(service.http, HALF_A_MEGAPIXEL, HALF_A_MEGAPIXEL, headers=headers)
    assert_problem(refused, 429, "quota-exceeded")
    assert_problem(send(service.http, headers=headers), 429, "rate-limited")
    assert service.context.queue.depth("compact") == 3


def test_a_batch_larger_than_a_minute_allows_is_refused_for_good(serve):
    service = serve(requests_per_minute=2)
    assert_problem(send(service.http), 422, "too-many-files")
