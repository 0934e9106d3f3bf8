"""A Redis that lets in only a user with a password, and to our names alone, is enough for API, queue and worker."""

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError

from jobs import BlobStore, JobStatus, JobStore, Settings, connect
from tests.conftest import RedisServer
from tests.integration.serving import serving, upload
from tests.unit.worker.fakes import FakeUpscaler
from worker import tasks
from worker.metrics import WorkerMetrics
from worker.queue import UpscaleWorker
from worker.runner import JobRunner


@pytest.fixture
def guarded(tmp_path):
    """The address of such a server, with user and password in it."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    admin = connect(server.url)
    admin.acl_setuser(
        "m3esr",
        enabled=True,
        passwords=["+open-sesame"],
        keys=["m3esr:*", "rq:*"],
        channels=["*"],
        categories=["+@all", "-@admin", "-@dangerous"],
        commands=["+info"],  # RQ asks the server's version
    )
    admin.acl_setuser("default", enabled=False)
    admin.close()
    yield server.url.replace("redis://", "redis://m3esr:open-sesame@")
    server.stop()


def test_a_job_goes_all_the_way_under_a_user_that_may_touch_our_names_only(guarded, tmp_path, logs):
    storage = str(tmp_path / "storage")
    settings = Settings(redis_url=guarded, storage_url=storage)
    with serving(settings) as service:
        job_id = upload(service.http).json()["id"]
        redis = connect(guarded, timeout_seconds=None)
        tasks.bind(
            JobRunner(
                *(settings, JobStore(redis), service.context.queue, BlobStore.open(storage)),
                *("compact", FakeUpscaler(), WorkerMetrics()),
            )
        )
        UpscaleWorker(redis, "compact", tasks._runner.stop).work(burst=True)
        tasks.bind(None)
        assert service.http.get(f"/v1/jobs/{job_id}").json()["status"] == JobStatus.SUCCEEDED
        assert "m3esr_redis_up 1.0" in service.http.get("/metrics").text
        with pytest.raises(NoPermissionError):
            redis.set("anything", 1)
        redis.close()
    assert not any("open-sesame" in str(line) for line in logs)


def test_without_the_password_nothing_is_answered(guarded):
    client = connect(guarded.replace("m3esr:open-sesame@", ""))
    with pytest.raises(AuthenticationError):
        client.ping()
    client.close()
