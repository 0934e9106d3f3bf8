"""Storage, settings, profiles and the vocabulary of errors."""

from urllib.parse import parse_qs, urlsplit

import obstore
import pytest
from obstore.store import MemoryStore

from jobs import (
    ERROR_KINDS,
    PROFILES,
    BlobStore,
    JobError,
    Settings,
    find_profile,
    input_key,
    map_key,
    result_key,
)


@pytest.fixture(params=["folder", "url"])
def blobs(request, tmp_path):
    folder = tmp_path / "a folder"
    return BlobStore.open(str(folder) if request.param == "folder" else folder.as_uri())


def test_a_blob_comes_back_as_it_was_put(blobs):
    blobs.put(input_key("job"), b"first")
    blobs.put(input_key("job"), b"second")
    assert blobs.get(input_key("job")) == b"second"
    assert blobs.get(result_key("job", "run")) is None


def test_deleting_a_job_leaves_its_neighbour_alone(blobs):
    for key in (input_key("job"), result_key("job", "run"), map_key("job", "run", "depth", "npy"), input_key("job2")):
        blobs.put(key, b"x")
    assert blobs.delete_prefix("job") == 3
    assert blobs.keys() == [input_key("job2")]
    assert blobs.delete_prefix("job") == 0


def test_a_link_opens_one_blob_of_an_object_store_for_a_time_and_a_folder_has_none(blobs, monkeypatch):
    assert blobs.sign(result_key("job", "run"), 60) is None
    for name, value in {"ACCESS_KEY_ID": "AK", "SECRET_ACCESS_KEY": "hidden", "REGION": "eu-west-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    link = urlsplit(BlobStore.open("s3://bucket/images").sign(result_key("job", "run"), 60))
    query = parse_qs(link.query)
    assert (link.scheme, link.path.endswith("/images/job/run/result")) == ("https", True)
    assert (query["X-Amz-Expires"], len(query["X-Amz-Signature"][0])) == (["60"], 64)
    assert "hidden" not in link.query


@pytest.mark.parametrize("job_id", ["../other", "a/b", "", ".."])
def test_an_id_cannot_climb_out_of_the_storage(blobs, job_id):
    with pytest.raises(JobError, match="job-not-found"):
        blobs.delete_prefix(job_id)
    with pytest.raises(JobError, match="job-not-found"):
        input_key(job_id)


def test_a_storage_that_cannot_be_had_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for url in (str(tmp_path / "file" / "storage"), "nonsense://here"):
        with pytest.raises(JobError) as raised:
            BlobStore.open(url)
        assert raised.value.code == "storage-unavailable"


def test_a_storage_that_goes_away_is_a_job_error(tmp_path):
    blobs = BlobStore.open(str(tmp_path / "storage"))
    (tmp_path / "storage").rmdir()
    (tmp_path / "storage").write_text("now a file")
    with pytest.raises(JobError) as raised:
        blobs.put(input_key("job"), b"x")
    assert (raised.value.code, raised.value.status) == ("storage-unavailable", 503)
    assert str(tmp_path) not in raised.value.detail  # where things lie is for the log alone


def test_an_object_store_is_told_what_a_result_is_and_a_folder_has_no_place_for_it(tmp_path):
    store = MemoryStore()
    BlobStore(store).put("a/result", b"x", "image/avif")
    assert obstore.get(store, "a/result").attributes == {"Content-Type": "image/avif"}
    blobs = BlobStore.open(str(tmp_path))
    blobs.put("a/result", b"x", "image/avif")
    assert blobs.get("a/result") == b"x"


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("M3ESR_PORT", "9000")
    monkeypatch.setenv("M3ESR_PROFILES", "quality, compact")
    settings = Settings()
    assert (settings.port, settings.profiles, settings.default_profile) == (
        9000,
        ("quality", "compact"),
        "quality",
    )


def test_every_setting_says_what_it_is():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_compact_comes_with_its_weights_and_the_others_say_how_to_get_theirs():
    assert find_profile("compact").how_to_install == ""
    for name in ("quality", "fidelity"):
        profile = find_profile(name)
        assert profile is PROFILES[name] and profile.licences
        assert f"m3esr models pull {name}" in profile.how_to_install
    with pytest.raises(JobError, match="unknown-profile"):
        find_profile("best")


def test_an_error_knows_its_type_and_status():
    error = JobError("too-many-pixels", "9 is more than 8.")
    assert (error.type, error.status) == ("urn:m3esr:problem:too-many-pixels", 422)
    assert not error.is_retryable
    assert all(400 <= kind.status < 600 for kind in ERROR_KINDS.values())
