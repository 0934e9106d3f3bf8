"""Prometheus metrics of one worker, on a port of its own."""

import math
import threading
from collections.abc import Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_MEGAPIXELS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
_WEIGHTS = tuple(tenth / 10 for tenth in range(1, 11))
_UNCERTAINTY = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


class WorkerMetrics:
    """The registry of one worker and what its runs feed.

    m3esr_jobs_total is the API's, counted once in Redis; here `m3esr_worker_runs_total` counts what this
    process did, so that the two never add up to double.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.runs = Counter(
            "m3esr_worker_runs",
            "Runs ended by this worker",
            ["profile", "state", "reason"],
            registry=registry,
        )
        self.busy = Gauge("m3esr_worker_busy", "1 while a job runs", registry=registry)
        self.model_loaded = Gauge("m3esr_model_loaded", "1 once the networks are warm", ["model"], registry=registry)
        self.stage_seconds = Histogram(
            "m3esr_stage_duration_seconds",
            "Seconds per stage",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "m3esr_denoise_step_seconds", "Seconds per denoising step", buckets=_SECONDS, registry=registry
        )
        self.output_megapixels = Histogram(
            "m3esr_output_megapixels", "Size of published images", buckets=_MEGAPIXELS, registry=registry
        )
        self.weight_mean = Histogram(
            "m3esr_modality_weight_mean",
            "Mean expert weight of a job, per modality: drift shows here first",
            ["modality"],
            buckets=_WEIGHTS,
            registry=registry,
        )
        self.uncertainty_mean = Histogram(
            "m3esr_uncertainty_mean",
            "Mean of a job's uncertainty map",
            buckets=_UNCERTAINTY,
            registry=registry,
        )

    def observe_run(self, timings: Mapping[str, float], map_means: Mapping[str, float], pixels: int) -> None:
        """Take a published run: seconds per stage, mean per map, output pixels."""
        for stage, seconds in timings.items():
            self.stage_seconds.labels(stage).observe(seconds)
        for name, mean in map_means.items():
            if not math.isfinite(mean):
                continue  # one NaN would spoil the sum until the process ends
            if name == "uncertainty_raw":
                continue  # beside the calibrated one
            histogram = self.uncertainty_mean if name == "uncertainty" else self.weight_mean.labels(name)
            histogram.observe(mean)
        self.output_megapixels.observe(pixels / 1e6)


class MetricsServer:
    """GET /metrics on its own thread. Raises OSError when the port is taken."""

    def __init__(self, metrics: WorkerMetrics, host: str, port: int) -> None:
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, addr=host, registry=metrics.registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
