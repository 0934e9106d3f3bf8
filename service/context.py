"""What every route works with, assembled once by service.app."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from jobs import (
    BatchStore,
    BlobStore,
    HeartbeatRegistry,
    JobEnds,
    JobPolls,
    JobQueue,
    JobStore,
    KeyStore,
    Outbox,
    RedisClient,
    Settings,
)
from service.fetching import Fetcher
from service.metrics import ServiceMetrics
from service.outbound import Guard
from service.pace import Paces
from service.throttle import Throttle
from service.waiting import WaitingRoom


@dataclass(frozen=True)
class Context:
    """The service's world: settings, and the doors to Redis and the storage."""

    settings: Settings
    redis: RedisClient
    store: JobStore
    polls: JobPolls
    ends: JobEnds
    batches: BatchStore
    queue: JobQueue
    paces: Paces
    blobs: BlobStore
    heartbeats: HeartbeatRegistry
    keys: KeyStore
    metrics: ServiceMetrics
    throttle: Throttle
    outbox: Outbox
    webhook_guard: Guard
    fetcher: Fetcher
    waiting_room: WaitingRoom


async def find_context(request: Request) -> Context:
    """The context of the app that serves `request`."""
    return cast(Context, request.app.state.context)


ContextDep = Annotated[Context, Depends(find_context)]
