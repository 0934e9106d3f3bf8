"""A Redis, a storage and the processes of one load test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import BlobStore, JobQueue, JobStore, connect, input_key
from tests.conftest import RedisServer
from tests.fakes import a_job, picture
from tests.load.processes import InProcess, Measured, Server

DTYPE = "fp32"  # `auto` is a probe's choice, and two processes beside each other may choose differently


class Stage:
    """Starts what a test needs and ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "redis").mkdir()
        self._redis_server = RedisServer(folder / "redis")
        self._redis_server.start()
        self.log = (folder / "log").open("ab")
        storage = folder / "storage"
        self.env = os.environ | {
            "M3ESR_REDIS_URL": self._redis_server.url,
            "M3ESR_STORAGE_URL": str(storage),
            "M3ESR_WORKER_METRICS_PORT": "0",
            "M3ESR_MAX_QUEUE_LENGTH": "20000",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "M3ESR_DTYPE": DTYPE,
        }
        self.redis = connect(self._redis_server.url, timeout_seconds=30)
        self.store, self.queue = JobStore(self.redis), JobQueue(self.redis)
        self.blobs = BlobStore.open(str(storage))
        self._started: list[Measured] = []

    def api(self) -> Server:
        """The product's API."""
        return self._keep(Server(lambda _: ["-m", "service.main"], self.env, self.log, "/livez"))

    def bare(self) -> Server:
        """The yardstick."""
        return self._keep(Server(lambda port: ["-m", "tests.load.bare", port], self.env, self.log, "/awaited/x"))

    def worker(self, *, is_real: bool) -> Measured:
        """A worker process without supervisor: with the networks, or the stand-in whose steps take no time."""
        command = ["-m", "worker.main"] if is_real else ["-m", "tests.chaos.stand_in", "child"]
        worker = Measured(command, {**self.env, "STEP_SECONDS": "0"}, self.log)
        self._started.append(worker)
        return worker

    def in_process(self) -> InProcess:
        """The work of a job without the service, with the environment of the worker."""
        process = InProcess(self.env, self.log, self._folder)
        self._started.append(process)
        return process

    def end(self, process: Measured) -> None:
        """End one of them before the others."""
        process.close()
        self._started.remove(process)

    def fill(self, num_jobs: int) -> list[str]:
        """Accept so many jobs that no worker is told of; their ids in order."""
        jobs = [a_job() for _ in range(num_jobs)]
        for start in range(0, num_jobs, 500):
            self.store.create_all(jobs[start : start + 500], max_queue_length=20_000)
        return [job.id for job in jobs]

    def submit(self, image: bytes | None = None) -> str:
        """One job, dispatched, as the API does it."""
        job = a_job()
        self.blobs.put(input_key(job.id), image or picture())
        self.queue.enqueue(self.store.create(job, max_queue_length=20_000))
        return job.id

    def close(self) -> None:
        """End everything."""
        for process in self._started:
            process.close()
        self.redis.close()
        self._redis_server.stop()
        self.log.close()

    def _keep(self, server: Server) -> Server:
        self._started.append(server)
        return server


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()
