"""A whole worker process: when it is ready, how it ends, and that it outlives a lost Redis."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from jobs import BlobStore, HeartbeatRegistry, JobQueue, JobStatus, JobStore, connect, input_key
from tests.conftest import RedisServer, free_port
from tests.fakes import a_job, picture

WAIT_SECONDS = 60


def wait_until(fact):
    """Poll until `fact()` is true; its value."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if value := fact():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come true in time")


class Host:
    """Starts worker processes and submits jobs to them."""

    def __init__(self, url, folder):
        self.env = {
            **os.environ,
            "M3ESR_REDIS_URL": url,
            "M3ESR_STORAGE_URL": str(folder / "storage"),
            "M3ESR_WORKER_METRICS_PORT": "0",
            "M3ESR_HEARTBEAT_SECONDS": "3",
        }
        self.log = folder / "worker.log"
        self.redis = connect(url)
        self.store, self.queue = JobStore(self.redis), JobQueue(self.redis)
        self.blobs = BlobStore.open(str(folder / "storage"))
        self.workers = []

    def start(self, **env):
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tests.unit.worker.fake_process"]
            worker = subprocess.Popen(command, env={**self.env, **env}, stdout=log, stderr=log)
        self.workers.append(worker)
        return worker

    def is_ready(self):
        return bool(HeartbeatRegistry(self.redis).ready("compact"))

    def health(self):
        command = [sys.executable, "-m", "worker.health"]
        return subprocess.run(command, env=self.env, capture_output=True, text=True)

    def submit(self, **options):
        record = self.store.create(a_job(**options), max_queue_length=10)
        self.blobs.put(input_key(record.id), picture())
        self.queue.enqueue(record)
        return record.id

    def status(self, job_id):
        return self.store.require(job_id).status

    def close(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.redis.close()


@pytest.fixture
def host(redis_url, tmp_path):
    host = Host(redis_url, tmp_path)
    yield host
    host.close()


def test_a_worker_is_healthy_while_it_beats_and_finishes_its_job_on_sigterm(host):
    assert host.health().returncode == 1
    metrics_port = free_port()
    worker = host.start(STEP_SECONDS="0.3", LOAD_SECONDS="2", M3ESR_WORKER_METRICS_PORT=str(metrics_port))
    time.sleep(1)
    assert not host.is_ready()
    wait_until(host.is_ready)
    assert host.health().returncode == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
        assert b'm3esr_model_loaded{model="compact"} 1.0' in answer.read()
    running, waiting = host.submit(num_steps=5), host.submit()
    wait_until(lambda: host.status(running) is JobStatus.RUNNING)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=WAIT_SECONDS) == 0
    assert host.status(running) is JobStatus.SUCCEEDED
    assert host.status(waiting) is JobStatus.QUEUED
    assert not host.is_ready()
    assert f'"job_id": "{running}"' in host.log.read_text()
    assert "Traceback" not in host.log.read_text()


def test_an_idle_worker_ends_within_seconds_of_sigterm(host):
    worker = host.start()
    wait_until(host.is_ready)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=8) == 0


def test_a_worker_takes_jobs_again_after_redis_was_away(tmp_path):
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    host = Host(server.url, tmp_path)
    try:
        worker = host.start()
        wait_until(host.is_ready)
        server.stop()
        time.sleep(3)
        assert worker.poll() is None
        server.start()
        job_id = host.submit()
        wait_until(lambda: host.status(job_id) is JobStatus.SUCCEEDED)
        wait_until(host.is_ready)
    finally:
        host.close()
        server.stop()


def test_a_worker_without_redis_says_so_in_one_line(tmp_path):
    env = {**os.environ, "M3ESR_REDIS_URL": f"redis://:secret@127.0.0.1:{free_port()}/0"}
    command = [sys.executable, "-m", "tests.unit.worker.fake_process"]
    told = subprocess.run(command, env=env, capture_output=True, text=True, cwd=os.getcwd())
    assert told.returncode != 0
    assert told.stderr.count("\n") == 1
    assert "M3ESR_REDIS_URL" in told.stderr
    assert "secret" not in told.stderr
