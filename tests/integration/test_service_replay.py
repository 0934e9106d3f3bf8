"""Replay, preview and estimate over HTTP."""

import io

import pytest
from PIL import Image

from jobs import JobError, PreviewInfo, input_key, preview_key, result_key
from service.sweeper import sweep_once
from tests.fakes import picture
from tests.integration.serving import upload
from tests.integration.test_service import read_events
from tests.integration.test_service_keys import make_key
from tests.integration.test_service_safety import assert_problem


def fail_next(service, attempt_id="first"):
    """A worker takes the next job, stores a preview and fails."""
    job_id = service.worker.take(attempt_id).id
    show_preview(service, job_id, attempt_id)
    service.worker.store.fail(job_id, attempt_id, JobError("timed-out", "Too slow."))


def show_preview(service, job_id, attempt_id):
    service.context.blobs.put(preview_key(job_id, attempt_id), picture(64, 48, "JPEG"))
    info = PreviewInfo(width=64, height=48, fraction=0.5)
    assert service.worker.store.report_preview(job_id, attempt_id, info)


def test_a_failed_job_runs_again_under_its_id(service):
    job = upload(service.http).json()
    fail_next(service)
    failed = service.http.get(job["url"]).json()
    assert (failed["status"], failed["error"]["detail"]) == ("failed", "Too slow.")
    answer = service.http.post(job["url"] + "/replay")
    again = answer.json()
    assert (answer.status_code, answer.headers["location"], again["id"]) == (202, job["url"], job["id"])
    assert (again["status"], again["error"], again["attempts"], again["replays"]) == ("queued", None, 0, 1)
    assert again["replayed_at"] > again["created_at"] and again["queue"]["position"] == 0
    service.worker.run_next("second")
    done = service.http.get(job["url"]).json()
    assert (done["status"], done["attempts"], done["replays"]) == ("succeeded", 1, 1)
    assert service.http.get(done["result"]["url"]).status_code == 200
    assert_problem(service.http.post(job["url"] + "/replay"), 409, "job-not-replayable")
    metrics = service.http.get("/metrics").text
    assert "m3esr_jobs_accepted_total 2.0" in metrics
    for labels in ('profile="compact",reason="timed-out",state="failed"', 'reason="",state="succeeded"'):
        assert labels in metrics


def test_a_job_canceled_in_the_line_runs_again_once(service):
    job = upload(service.http).json()
    service.http.delete(job["url"])
    assert service.http.post(job["url"] + "/replay").status_code == 202
    # Two dispatches lie in the queue now, the one of its first life before the other.
    assert service.worker.run_next("a").status == "succeeded"
    assert service.worker.run_next("b") is None
    assert service.http.get(job["url"]).json()["attempts"] == 1


def test_who_listens_hears_of_the_second_life(service):
    job = upload(service.http).json()
    fail_next(service)
    [(version, _, _)] = read_events(service.http, job["url"] + "/events")
    service.http.post(job["url"] + "/replay")
    service.worker.run_next("second")
    [(later, name, told)] = read_events(service.http, job["url"] + "/events", {"Last-Event-ID": str(version)})
    assert (later > version, name, told["status"]) == (True, "status", "succeeded")


def test_without_its_upload_a_job_is_not_replayed(service):
    job = upload(service.http).json()
    fail_next(service)
    service.context.blobs.delete_prefix(job["id"])
    assert_problem(service.http.post(job["url"] + "/replay"), 410, "job-expired")
    assert service.http.get(job["url"]).json()["status"] == "failed"
    assert service.context.queue.depth("compact") == 0


def test_a_replayed_job_is_not_swept_at_its_old_time(service):
    job = upload(service.http, ttl_seconds="60").json()
    fail_next(service)
    old_time = service.context.redis.zscore("m3esr:expiry", job["id"])
    service.http.post(job["url"] + "/replay")
    assert service.context.redis.zscore("m3esr:expiry", job["id"]) > old_time
    assert sweep_once(service.context.store, service.context.blobs) == 0
    assert service.context.blobs.exists(input_key(job["id"]))


def test_a_replay_counts_as_a_request_and_as_no_pixels(serve):
    service = serve(requests_per_minute=2, megapixels_per_day=1)
    headers = make_key(service)
    url = upload(service.http, picture(200, 156), headers=headers).json()["url"]
    service.http.delete(url, headers=headers)
    assert service.http.post(url + "/replay", headers=headers).status_code == 202
    service.http.delete(url, headers=headers)
    assert_problem(service.http.post(url + "/replay", headers=headers), 429, "rate-limited")


def test_a_full_queue_answers_429_and_the_job_stays_failed(serve):
    service = serve(max_queue_length=1)
    job = upload(service.http).json()
    fail_next(service)
    upload(service.http)
    assert_problem(service.http.post(job["url"] + "/replay"), 429, "queue-full")
    assert service.http.get(job["url"]).json()["status"] == "failed"


def test_a_preview_is_there_while_the_job_runs_and_afterwards(service):
    job = upload(service.http).json()
    url = job["url"] + "/preview"
    answer = service.http.get(url)
    assert_problem(answer, 404, "preview-not-found")
    assert (job["preview"], answer.headers["retry-after"]) == (None, "1")
    job_id = service.worker.take("first").id
    show_preview(service, job_id, "first")
    told = service.http.get(job["url"]).json()["preview"]
    assert told == {"url": url, "width": 64, "height": 48, "fraction": 0.5}
    image = service.http.get(url)
    assert (image.headers["content-type"], image.headers["cache-control"]) == ("image/jpeg", "no-store")
    assert Image.open(io.BytesIO(image.content)).size == (64, 48)
    service.worker.store.fail(job_id, "first", JobError("timed-out", "Too slow."))
    assert service.http.get(url).status_code == 200  # what there is of a failed job
    service.http.post(job["url"] + "/replay")
    assert service.http.get(job["url"]).json()["preview"] is None
    assert_problem(service.http.get(url), 404, "preview-not-found")


def test_the_preview_of_an_expired_job_is_gone(service):
    job = upload(service.http).json()
    fail_next(service)
    service.context.redis.zadd("m3esr:expiry", {job["id"]: 0})
    sweep_once(service.context.store, service.context.blobs)
    assert service.http.get(job["url"]).json()["preview"] is None
    assert_problem(service.http.get(job["url"] + "/preview"), 410, "job-expired")
    assert not service.context.blobs.exists(result_key(job["id"], "first"))


def ask(service, width=640, height=480, **options):
    body = {"input": {"width": width, "height": height}, "options": options}
    return service.http.post("/v1/estimate", json=body)


def test_an_estimate_tells_sizes_and_work_and_no_seconds_before_a_run(service):
    answer = ask(service, scale=2)
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "input": {"width": 640, "height": 480, "megapixels": 0.3072},
            "output": {"width": 1280, "height": 960, "megapixels": 1.2288},
            "num_regions": 12,
            "num_tiles": 300,
            "seconds": None,
            "wait_seconds": None,
        },
    )
    assert service.context.redis.keys("m3esr:job:*") == []


def test_an_estimate_is_measured_from_the_last_runs(service):
    service.worker.announce()
    assert ask(service).json()["wait_seconds"] == 0
    upload(service.http)
    service.worker.run_next()  # tells 0.1 s of denoising for 64x48 pixels
    told = ask(service, 16, 12)
    assert told.json()["seconds"] == pytest.approx(0.1, abs=0.05)
    assert ask(service, 16, 12, num_steps=4).json()["seconds"] == pytest.approx(0.4, abs=0.05)
    upload(service.http)
    assert ask(service).json()["wait_seconds"] is not None


@pytest.mark.parametrize(
    ("asked", "code", "field"),
    [
        ({"width": 6000, "height": 6000}, "too-many-pixels", "file"),
        ({"width": 3000, "height": 3000}, "too-many-pixels", "file"),
        ({"scale": 9}, "invalid-option", "options.scale"),
        ({"colour": "red"}, "invalid-option", "options.colour"),
        ({"megapixels": 900}, "invalid-option", "megapixels"),
        ({"profile": "best"}, "unknown-profile", "profile"),
        ({"profile": "quality"}, "profile-not-installed", "profile"),
        ({"ttl_seconds": 2_000_000}, "invalid-option", "ttl_seconds"),
        ({"width": 0}, "invalid-option", "input.width"),
    ],
)
def test_an_estimate_refuses_what_an_upscale_would(service, asked, code, field):
    size = {name: asked.pop(name) for name in ("width", "height") if name in asked}
    problem = assert_problem(ask(service, **size, **asked), 422, code)
    assert problem["field"] == field


def test_a_body_that_is_no_estimate_is_a_problem(service):
    for body in (b"", b"{", b"[]", b'{"options": {}}'):
        answer = service.http.post("/v1/estimate", content=body, headers={"Content-Type": "application/json"})
        assert_problem(answer, 422, "invalid-option")
