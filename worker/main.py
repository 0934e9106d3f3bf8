"""A worker process: load and warm the networks, say so, then run jobs until a signal.

`worker.supervisor` starts it and watches it; without one (`python -m worker.main`) it works just as well, but nobody
restarts it.
"""

import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import structlog

from jobs import (
    REDIS_AWAY,
    BlobStore,
    HeartbeatRegistry,
    JobError,
    JobQueue,
    JobStore,
    RedisClient,
    Settings,
    UpscaleRequest,
    WorkerHeartbeat,
    configure_logs,
    connect,
    find_profile,
)
from worker import results, tasks
from worker.metrics import MetricsServer, WorkerMetrics
from worker.pulse import ALIVE, READY, WORKER_ID, Pulse
from worker.queue import UpscaleWorker, request_stop
from worker.runner import JobRunner, StopFlag
from worker.upscaler import Upscaler

WARM_UP_SIDE = 32
RECONNECT_SECONDS = 1.0
LoadUpscaler = Callable[[Settings, str], Upscaler]
log = structlog.get_logger(__name__)


def load_upscaler(settings: Settings, profile: str) -> Upscaler:
    """The networks of `profile`. Raises SystemExit with one clear line when they cannot be had."""
    try:
        from models.pipeline import Upscaler as Networks
    except ModuleNotFoundError as error:
        raise SystemExit(f"The worker needs {error.name}; install the extra: pip install 'm3esr[worker]'") from error
    try:
        upscaler: Upscaler = Networks.load(
            profile=profile,
            device=settings.device,
            checkpoint=settings.checkpoint,
            dtype=settings.dtype,
            backbone=backbone_options(settings),
        )
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"'{profile}' needs {error.name}; install the extra: pip install 'm3esr[diffusion]'"
        ) from error
    except (OSError, ValueError) as error:
        raise SystemExit(f"The networks of '{profile}' cannot be loaded: {error}") from error
    return upscaler


def backbone_options(settings: Settings) -> Any:
    """How `quality` and `fidelity` are loaded and held, a `models.backbones.options.BackboneOptions`."""
    from models.backbones.options import BackboneOptions

    return BackboneOptions(
        models_dir=settings.models_dir,
        offload=settings.offload,
        dtype=settings.dtype,
        quality_weights=settings.quality_weights,
        captions=settings.captions,
        caption_bits=settings.caption_bits,
        official_sampling=settings.official_sampling,
        compile=settings.compile,
    )


def run(settings: Settings, profile: str | None = None, *, load: LoadUpscaler = load_upscaler) -> None:
    """Work for one profile until SIGTERM or SIGINT; with several in the settings, it must be named.

    Raises SystemExit with one clear line when it cannot start.
    """
    profile = check_profile(settings, profile)
    redis = connect(settings.redis_url, timeout_seconds=None)
    check_redis(redis, settings)
    configure_logs(settings.log_level)
    stop, pulse = StopFlag(), Pulse.from_environment()
    worker_id = os.environ.get(WORKER_ID) or new_worker_id()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: request_stop(stop))
    with ExitStack() as stack:
        metrics = WorkerMetrics()
        _serve_metrics(settings, metrics, stack)
        upscaler = load(settings, profile)
        warm_up(upscaler)
        metrics.model_loaded.labels(profile).set(1)
        queue = JobQueue(redis, job_timeout_seconds=settings.job_timeout_seconds)
        blobs = _open_blobs(settings)
        runner = JobRunner(settings, JobStore(redis), queue, blobs, profile, upscaler, metrics, stop, worker_id, pulse)
        tasks.bind(runner)
        stack.callback(tasks.bind, None)
        stack.enter_context(Heartbeat(settings, profile, upscaler, worker_id, pulse))
        pulse.send(READY)
        log.info("ready", **upscaler.describe())
        work(redis, profile, stop)
    log.info("stopped")


def new_worker_id() -> str:
    """A name for one worker process; `worker.health` reads the host from it."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def warm_up(upscaler: Upscaler) -> None:
    """One small run, so that the first job does not pay for lazy allocation and kernels."""
    lr_image = np.full((WARM_UP_SIDE, WARM_UP_SIDE, 3), 0.5, dtype=np.float32)
    request = UpscaleRequest(num_steps=1)
    upscaler.upscale(lr_image, results.upscale_options(request, WARM_UP_SIDE, WARM_UP_SIDE))


def work(redis: RedisClient, profile: str, stop: StopFlag) -> None:
    """Run jobs until `stop`; RQ's own loop gives up when Redis goes away, this one starts it again."""
    while not stop.is_stopping:
        try:
            UpscaleWorker(redis, profile, stop).work(logging_level=None)
        except REDIS_AWAY as error:
            log.warning("redis_away", reason=str(error), retry_seconds=RECONNECT_SECONDS)
        if not stop.is_stopping:
            time.sleep(RECONNECT_SECONDS)


class Heartbeat:
    """While entered, says every few seconds that this worker lives and is ready; on exit, that it left."""

    def __init__(self, settings: Settings, profile: str, upscaler: Upscaler, worker_id: str, pulse: Pulse) -> None:
        description = upscaler.describe()
        self._ttl_seconds = settings.heartbeat_seconds
        self._pulse = pulse
        # A connection of its own with short waits: the worker's blocks on the queue.
        self._registry = HeartbeatRegistry(connect(settings.redis_url))
        self._worker = WorkerHeartbeat(
            id=worker_id,
            profiles=(profile,),
            is_ready=True,
            device=str(description.get("device", settings.device)),
            since=datetime.now(UTC),
            models={profile: results.model_info(description)},
        )
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> WorkerHeartbeat:
        self._thread.start()
        return self._worker

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(timeout=5)
        try:
            self._registry.leave(self._worker.id)
        except REDIS_AWAY as error:
            log.warning("heartbeat_lost", reason=str(error))  # it runs out by itself

    def _beat_on(self) -> None:
        while not self._is_over.is_set():
            self._pulse.send(ALIVE)
            try:
                self._registry.beat(self._worker, ttl_seconds=self._ttl_seconds)
            except REDIS_AWAY as error:
                log.warning("heartbeat_lost", reason=str(error))
            self._is_over.wait(self._ttl_seconds / 5)


def check_profile(settings: Settings, profile: str | None) -> str:
    """The name of the one profile to serve. Raises SystemExit with one clear line when it is not clear or unknown."""
    if profile is None and len(settings.profiles) > 1:
        raise SystemExit(
            f"A worker serves one profile and M3ESR_PROFILES names {', '.join(settings.profiles)}: "
            "start one worker for each with m3esr work --profile NAME."
        )
    try:
        return find_profile(profile or settings.default_profile).name
    except JobError as error:
        raise SystemExit(error.detail) from error


def check_redis(redis: RedisClient, settings: Settings) -> None:
    """Raises SystemExit with one clear line when Redis does not answer."""
    try:
        redis.ping()
    except REDIS_AWAY as error:
        parts = urlsplit(settings.redis_url)
        place = f"{parts.hostname}:{parts.port or 6379}"  # the URL may hold a password
        raise SystemExit(f"Redis does not answer at {place}. Start it, or set M3ESR_REDIS_URL.") from error


def _serve_metrics(settings: Settings, metrics: WorkerMetrics, stack: ExitStack) -> None:
    if settings.worker_metrics_port == 0:
        return
    try:
        server = MetricsServer(metrics, settings.worker_metrics_host, settings.worker_metrics_port)
    except OSError as error:
        raise SystemExit(
            f"Port {settings.worker_metrics_port} is taken: set M3ESR_WORKER_METRICS_PORT (0: off)."
        ) from error
    stack.callback(server.close)


def _open_blobs(settings: Settings) -> BlobStore:
    try:
        return BlobStore.open(settings.storage_url)
    except JobError as error:
        raise SystemExit(error.detail) from error


def main() -> int:
    """The worker process; the exit code: 2 with one line on stderr for what a person can put right."""
    try:
        run(Settings(), sys.argv[1] if len(sys.argv) > 1 else None)
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        sys.stderr.write(f"m3esr: {error.code}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
