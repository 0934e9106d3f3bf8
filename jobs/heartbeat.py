"""Heartbeats: workers say that they are there and ready, the service reads who serves what."""

import time
from collections.abc import Callable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from jobs import keys
from jobs.connection import RedisClient
from jobs.record import ModelInfo


class WorkerHeartbeat(BaseModel):
    """What a worker tells about itself. is_ready: its networks are warmed up. since: when it started."""

    model_config = ConfigDict(frozen=True)

    id: str
    profiles: tuple[str, ...]
    is_ready: bool
    device: str
    since: datetime
    job_id: str | None = None
    models: dict[str, ModelInfo] = {}


class HeartbeatRegistry:
    """Living workers in Redis; one that stops beating is gone after its ttl. clock: seconds since 1970."""

    def __init__(self, redis: RedisClient, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock

    def beat(self, worker: WorkerHeartbeat, *, ttl_seconds: int) -> None:
        """Say that `worker` lives; to be repeated well within `ttl_seconds`."""
        pipeline = self._redis.pipeline()
        pipeline.set(keys.worker_key(worker.id), worker.model_dump_json(), ex=ttl_seconds)
        pipeline.zadd(keys.WORKERS, {worker.id: self._clock() + ttl_seconds})
        pipeline.execute()

    def leave(self, worker_id: str) -> None:
        """Take a worker that ends off the list at once."""
        pipeline = self._redis.pipeline()
        pipeline.delete(keys.worker_key(worker_id))
        pipeline.zrem(keys.WORKERS, worker_id)
        pipeline.execute()

    def workers(self) -> list[WorkerHeartbeat]:
        """The living workers, loading ones too."""
        now = self._clock()
        self._redis.zremrangebyscore(keys.WORKERS, "-inf", now)
        ids = [raw.decode() for raw in self._redis.zrangebyscore(keys.WORKERS, now, "+inf")]
        if not ids:
            return []
        beats = self._redis.mget([keys.worker_key(worker_id) for worker_id in ids])
        return [WorkerHeartbeat.model_validate_json(beat) for beat in beats if beat]

    def ready(self, profile: str) -> list[WorkerHeartbeat]:
        """The workers that would take a job of `profile` now."""
        return [worker for worker in self.workers() if worker.is_ready and profile in worker.profiles]
