"""Prometheus metrics of the API: requests counted here, jobs and queues read from Redis at scrape time."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs import REDIS_AWAY, HeartbeatRegistry, JobQueue, JobStore, Outbox


class QueueCollector(Collector):
    """Reads depth, age, outcomes and workers from Redis; tells `m3esr_redis_up 0` alone when it is away."""

    def __init__(
        self, store: JobStore, queue: JobQueue, heartbeats: HeartbeatRegistry, profiles: Iterable[str]
    ) -> None:
        self._store = store
        self._queue = queue
        self._heartbeats = heartbeats
        self._profiles = tuple(profiles)

    def describe(self) -> Iterable[Metric]:
        # Without this the registry would collect once at registration, and the service could not start
        # before Redis does.
        return []

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("m3esr_redis_up", "1 while Redis answers")
        try:
            families = [*self._queues(), *self._jobs(), self._workers()]
        except REDIS_AWAY:
            families = []
        up.add_metric([], 1 if families else 0)
        return [up, *families]

    def _queues(self) -> list[Metric]:
        depth = GaugeMetricFamily("m3esr_queue_depth", "Jobs waiting", labels=["queue"])
        age = GaugeMetricFamily(
            "m3esr_queue_oldest_age_seconds", "How long the first in line has waited", labels=["queue"]
        )
        for profile in self._profiles:
            depth.add_metric([profile], self._queue.depth(profile))
            age.add_metric([profile], self._queue.oldest_age_seconds(profile))
        return [depth, age]

    def _jobs(self) -> list[Metric]:
        accepted = CounterMetricFamily("m3esr_jobs_accepted", "Jobs accepted")
        accepted.add_metric([], self._store.num_accepted())
        ended = CounterMetricFamily(
            "m3esr_jobs", "Jobs ended, each counted once", labels=["profile", "state", "reason"]
        )
        for (profile, state, reason), count in self._store.counters().items():
            ended.add_metric([profile, state, reason], count)
        retries = CounterMetricFamily("m3esr_job_recoveries", "Jobs brought back, by cause", labels=["cause"])
        for cause, count in self._store.recoveries().items():
            retries.add_metric([cause], count)
        return [accepted, ended, retries]

    def _workers(self) -> Metric:
        gauge = GaugeMetricFamily("m3esr_workers", "Living workers", labels=["profile", "state"])
        workers = self._heartbeats.workers()
        for profile in self._profiles:
            serving = [worker for worker in workers if profile in worker.profiles]
            num_ready = sum(worker.is_ready for worker in serving)
            gauge.add_metric([profile, "ready"], num_ready)
            gauge.add_metric([profile, "loading"], len(serving) - num_ready)
        return gauge


class WebhookCollector(Collector):
    """Reads from Redis what became of webhooks; tells nothing while it is away."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def describe(self) -> Iterable[Metric]:
        return []  # as above

    def collect(self) -> Iterable[Metric]:
        tries = CounterMetricFamily("m3esr_webhook_deliveries", "Tries to send a webhook", labels=["outcome"])
        pending = GaugeMetricFamily("m3esr_webhooks_pending", "Webhooks to be sent, now or later")
        dead = GaugeMetricFamily("m3esr_webhooks_dead", "Webhooks that were given up and can be replayed")
        try:
            for outcome, count in self._outbox.deliveries().items():
                tries.add_metric([outcome], count)
            pending.add_metric([], self._outbox.num_pending())
            dead.add_metric([], self._outbox.num_dead())
        except REDIS_AWAY:
            return []
        return [tries, pending, dead]


class ServiceMetrics:
    """The registry of one app, and the metrics its routes feed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter("m3esr_http_requests", "Answers", ["method", "route", "status"], registry=self.registry)
        self.request_seconds = Histogram(
            "m3esr_http_request_duration_seconds",
            "Seconds from the request to the end of its answer",
            ["method", "route"],
            registry=self.registry,
        )
        self.input_megapixels = Histogram(
            "m3esr_input_megapixels",
            "Size of accepted images",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.rejected = Counter(
            "m3esr_uploads_rejected", "Uploads refused, by problem code", ["code"], registry=self.registry
        )
