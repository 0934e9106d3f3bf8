"""A Redis, some supervised workers and a stream of jobs, with the means to hurt each of them and to count."""

import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import BlobStore, JobQueue, JobRecord, JobStatus, JobStore, connect, input_key, result_key
from jobs.keys import LEASES, OUTBOX
from tests.chaos.processes import Service, Worker, wait_until
from tests.conftest import RedisServer
from tests.fakes import a_job, picture

LEASE_SECONDS = float(os.environ.get("CHAOS_LEASE_SECONDS", "3"))
STALL_SECONDS = float(os.environ.get("CHAOS_STALL_SECONDS", "4"))
AWAY_SECONDS = float(os.environ.get("CHAOS_AWAY_SECONDS", "3"))  # of Redis, and of a stopped worker
NUM_JOBS = int(os.environ.get("CHAOS_JOBS", "24"))
NUM_FAULTS = int(os.environ.get("CHAOS_FAULTS", "6"))


class Fleet:
    """Everything one chaos test needs, in a folder of its own."""

    def __init__(self, folder: Path, **env: str) -> None:
        (folder / "redis").mkdir()
        self.server = RedisServer(folder / "redis")
        self.server.start()
        self.storage = folder / "storage"
        self._log = (folder / "workers.log").open("ab")
        self.log_path = folder / "workers.log"
        self._env = {
            **os.environ,
            "M3ESR_REDIS_URL": self.server.url,
            "M3ESR_STORAGE_URL": str(self.storage),
            "M3ESR_WORKER_METRICS_PORT": "0",
            "M3ESR_HEARTBEAT_SECONDS": "3",
            "M3ESR_LEASE_SECONDS": str(LEASE_SECONDS),
            "M3ESR_STALL_SECONDS": str(STALL_SECONDS),
            "M3ESR_DRAIN_SECONDS": "1",
            "M3ESR_MAX_QUEUE_LENGTH": "10000",
            **env,
        }
        self.redis = connect(self.server.url, timeout_seconds=5)
        self.store, self.queue = JobStore(self.redis), JobQueue(self.redis)
        self.blobs = BlobStore.open(str(self.storage))
        self.workers: list[Worker] = []
        self._services: list[Service] = []
        self._mount: Path | None = None
        self.job_ids: list[str] = []
        self.recoveries: list[float] = []

    def start_worker(self) -> Worker:
        """Start one more supervisor."""
        command = [sys.executable, "-m", "tests.chaos.stand_in"]
        process = subprocess.Popen(command, env=self._env, stdout=self._log, stderr=self._log)
        self.workers.append(Worker(process))
        return self.workers[-1]

    def start_service(self) -> Service:
        """Start the API."""
        self._services.append(Service(self._env, self._log))
        self._services[-1].start()
        return self._services[-1]

    def replace(self, worker: Worker) -> Worker:
        """Start a supervisor in the place of one that ended, as compose or systemd would."""
        worker.process.wait(timeout=60)
        self.workers.remove(worker)
        return self.start_worker()

    def submit(self, **options: Any) -> str:
        """Accept one job as the API does: the input, the record, the dispatch."""
        number = len(self.job_ids)  # three owners who take turns, and every priority
        given = {
            "priority": ("normal", "low", "high")[number // 3 % 3],
            "webhook_url": "https://hooks.test/",
            **options,
        }
        job = a_job(**given).model_copy(update={"owner": ("", "one", "two")[number % 3]})
        self.blobs.put(input_key(job.id), picture())
        self.queue.enqueue(self.store.create(job, max_queue_length=10_000))
        self.job_ids.append(job.id)
        return job.id

    def records(self) -> list[JobRecord]:
        """All jobs of this test."""
        return [self.store.require(job_id) for job_id in self.job_ids]

    def running(self) -> JobRecord | None:
        """A job that runs now."""
        return next(iter(self._held()), None)

    def _held(self) -> list[JobRecord]:
        held = [self.store.get(raw.decode()) for raw in self.redis.zrange(LEASES, 0, -1)]
        return [record for record in held if record is not None and record.status is JobStatus.RUNNING]

    def running_at(self, worker: Worker) -> JobRecord | None:
        """The job that a worker runs now."""
        return next((record for record in self._held() if self.worker_of(record) is worker), None)

    def worker_of(self, record: JobRecord) -> Worker | None:
        """The worker that runs a job, by the process id in its name; None when its supervisor is dead already."""
        pid = int(str(record.holder).rsplit("-", 2)[1])
        return next((worker for worker in self.workers if worker.process.pid == pid), None)

    def keep_busy(self, **options: Any) -> None:
        """Submit some jobs when few wait, so that a fault always finds some."""
        if self.queue.depth("compact") < 8:
            for _ in range(16):
                self.submit(**options)

    def note_recovery(self, victim: JobRecord) -> None:
        """Wait until a job whose run was hurt runs anew or ends; the seconds count as a recovery.

        A run that had ended when it was hit does not count.
        """
        started = time.monotonic()
        record = self.store.require(victim.id)
        if record.status.is_final and record.attempt_id == victim.attempt_id:
            return

        def is_back() -> bool:
            record = self.store.require(victim.id)
            return record.status.is_final or record.attempt_id not in (None, victim.attempt_id)

        wait_until(is_back, LEASE_SECONDS + 60, f"job {victim.id} is run again")
        self.recoveries.append(time.monotonic() - started)

    def drain(self, seconds: float = 300) -> list[JobRecord]:
        """Wait until every job ended; the records."""
        wait_until(lambda: all(record.status.is_final for record in self.records()), seconds, "every job ended")
        return self.records()

    def check_published_once(self, records: list[JobRecord]) -> None:
        """Every job succeeded, has the files of one run, intact, was counted once, and left one webhook to send."""
        for record in records:
            assert record.status is JobStatus.SUCCEEDED, record
            assert record.attempt_id is not None and record.outcome.result is not None
            image = self.blobs.get(result_key(record.id, record.attempt_id))
            assert image is not None, f"{record.id} has no result"
            assert hashlib.sha256(image).hexdigest() == record.outcome.result.sha256
        assert sum(self.store.counters().values()) == len(records)
        asked = sorted(record.id for record in records if record.options.webhook_url)
        assert sorted(raw.decode() for raw in self.redis.zrange(OUTBOX, 0, -1)) == asked

    def take_storage_away(self) -> Callable[[], None]:
        """As when a network drive goes; how to bring it back."""
        aside = self.storage.with_name("aside")
        self.storage.rename(aside)
        self.storage.write_bytes(b"")

        def repair() -> None:
            self.storage.unlink()
            aside.rename(self.storage)

        return repair

    def put_storage_on_a_disk_of(self, num_bytes: int) -> None:
        """A disk of its own for the storage; skips the test where this process may not mount one."""
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(self.storage)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a full disk needs the right to mount one")
        self._mount = self.storage

    def fill_storage(self) -> Callable[[], None]:
        """To the last byte; how to make room again."""
        ballast = self.storage / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return ballast.unlink

    def stored(self) -> list[str]:
        """The keys of everything in the storage."""
        return self.blobs.keys()

    def report(self, fault: str, num_faults: int) -> None:
        """One line for docs/reliability.md."""
        statuses = [record.status for record in self.records()]
        words = [f"{num_faults} faults", f"{len(statuses)} jobs"]
        words += [f"{statuses.count(status)} {status.value}" for status in JobStatus if status in statuses]
        words.append(f"{sum(not status.is_final for status in statuses)} lost")
        if self.recoveries:
            words.append(f"{len(self.recoveries)} runs hit")
            median, worst = statistics.median(self.recoveries), max(self.recoveries)
            words.append(f"re-run after {median:.1f} s (median), {worst:.1f} s (worst)")
        words += [f"{count} {cause}" for cause, count in self.store.recoveries().items()]
        sys.stdout.write(f"\n{fault}: {', '.join(words)}\n")

    def close(self) -> None:
        """End everything."""
        for service in self._services:
            service.close()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.hit("both")
                worker.process.wait()
        self.redis.close()
        self.server.stop()
        self._log.close()
        if self._mount is not None:
            subprocess.run(["umount", str(self._mount)], check=True)
