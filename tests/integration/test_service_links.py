"""Signed links to results: on a server that gives them, for the caller's own jobs, and for a time."""

from datetime import UTC, datetime, timedelta

from tests.integration.serving import upload
from tests.integration.test_service_keys import make_key
from tests.integration.test_service_safety import assert_problem


def test_a_link_is_to_the_published_result_and_its_owners_alone(serve, monkeypatch):
    service = serve(signed_url_seconds=600)
    monkeypatch.setattr(service.context.blobs, "sign", lambda key, seconds: f"https://store.test/{key}?for={seconds}")
    alice, bob = make_key(service, "alice"), make_key(service, "bob")
    job = upload(service.http, headers=alice).json()
    url = job["url"] + "/result/link"
    assert_problem(service.http.get(url, headers=alice), 409, "job-not-finished")
    service.worker.run_next("the-run")
    link = service.http.get(url, headers=alice).json()
    assert link["url"] == f"https://store.test/{job['id']}/the-run/result?for=600"
    left = datetime.fromisoformat(link["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)
    assert_problem(service.http.get(url, headers=bob), 404, "job-not-found")


def test_without_the_setting_and_from_a_folder_there_are_none(serve):
    for settings in ({}, {"signed_url_seconds": 60}):
        service = serve(**settings)
        job = upload(service.http).json()
        service.worker.run_next()
        assert_problem(service.http.get(job["url"] + "/result/link"), 404, "link-not-available")
