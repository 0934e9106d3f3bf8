"""Stand-ins that do honest work without networks: a worker, a clock, and pictures."""

import contextlib
import hashlib
import io
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from jobs import (
    BlobStore,
    HeartbeatRegistry,
    InputInfo,
    JobOutcome,
    JobRecord,
    JobStatus,
    JobStore,
    MapInfo,
    ModelInfo,
    NewJob,
    Progress,
    RedisClient,
    ResultInfo,
    Signal,
    Trust,
    UpscaleRequest,
    WorkerHeartbeat,
    input_key,
    map_key,
    new_job_id,
    queue_name,
    result_key,
)


class FakeClock:
    """A clock that moves when told to; seconds since 1970."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def picture(width: int = 16, height: int = 12, image_format: str = "PNG", mode: str = "RGB", **save: object) -> bytes:
    """The bytes of a small image of noise, the same every time."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, image_format, **save)
    return file.getvalue()


def a_job(**options: object) -> NewJob:
    """A job of a 16x12 PNG with these options, not stored anywhere."""
    return NewJob(
        id=new_job_id(),
        profile="compact",
        options=UpscaleRequest.model_validate(options),
        input=InputInfo(width=16, height=12, format="png", bytes=600, sha256="0" * 64),
        ttl_seconds=3600,
    )


class FakeWorker:
    """Takes jobs off the queue as RQ's worker would, and publishes a nearest-neighbour enlargement."""

    def __init__(self, redis: RedisClient, blobs: BlobStore, profile: str = "compact") -> None:
        self._redis = redis
        self._blobs = blobs
        self._profile = profile
        self.store = JobStore(redis)
        self.heartbeats = HeartbeatRegistry(redis)

    def announce(self, *, is_ready: bool = True) -> None:
        """Send one heartbeat, good for a minute."""
        since = datetime.now(UTC)
        beat = WorkerHeartbeat(id="fake", profiles=(self._profile,), is_ready=is_ready, device="cpu", since=since)
        self.heartbeats.beat(beat, ttl_seconds=60)

    def take(self, attempt_id: str) -> JobRecord | None:
        """Begin the next job, as a dispatch allows it; None without a dispatch, or when nobody waits."""
        is_called = self._redis.lpop(f"rq:queue:{queue_name(self._profile)}") is not None
        return self.store.begin_next(self._profile, attempt_id) if is_called else None

    def run_next(self, attempt_id: str = "attempt-1", step_seconds: float = 0.0) -> JobRecord | None:
        """Run the next job to its end; its record after, or None when there was nothing to run."""
        record = self.take(attempt_id)
        if record is None:
            return None
        for step in range(1, 5):
            progress = Progress(stage="denoising", step=step, num_steps=4, fraction=step / 5)
            if self.store.report_progress(record.id, attempt_id, progress) is Signal.CANCEL:
                self.store.finish(record.id, attempt_id, JobStatus.CANCELED, JobOutcome())
                return self.store.get(record.id)
            time.sleep(step_seconds)
        self.store.finish(record.id, attempt_id, JobStatus.SUCCEEDED, self._publish(record, attempt_id))
        return self.store.get(record.id)

    @contextlib.contextmanager
    def running(self, step_seconds: float = 0.0) -> Iterator[None]:
        """Run jobs in a thread as they come, until the block ends."""
        is_over = threading.Event()

        def loop() -> None:
            while not is_over.is_set():
                if self.run_next(new_job_id(), step_seconds) is None:
                    time.sleep(0.01)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _publish(self, record: JobRecord, attempt_id: str) -> JobOutcome:
        data = self._blobs.get(input_key(record.id))
        assert data is not None
        size = record.options.output_size(record.input.width, record.input.height)
        with Image.open(io.BytesIO(data)) as lr_image:
            sr_image = lr_image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        file = io.BytesIO()
        sr_image.save(file, "PNG")
        self._blobs.put(result_key(record.id, attempt_id), file.getvalue())
        values = io.BytesIO()
        np.save(values, np.full((3, 4), 0.5, dtype=np.float32))
        self._blobs.put(map_key(record.id, attempt_id, "depth", "npy"), values.getvalue())
        self._blobs.put(map_key(record.id, attempt_id, "depth", "png"), picture(4, 3))
        return JobOutcome(
            result=ResultInfo(
                width=size[0],
                height=size[1],
                content_type="image/png",
                bytes=len(file.getvalue()),
                sha256=hashlib.sha256(file.getvalue()).hexdigest(),
            ),
            maps={"depth": MapInfo(mean=0.5, quantiles={"p50": 0.5})},
            temperatures={"sigma": [1.0, 0.5], "depth": [0.9, 0.7]},
            trust=Trust(lr_consistency_psnr=40.0, uncertainty_quantiles={"p50": 0.1}),
            timings={"denoising": 0.1},
            model=ModelInfo(profile="compact", checkpoint="fake", sha256="f" * 64),
            fusion="trained",
            caption="noise",
            seed=record.options.seed,
        )
