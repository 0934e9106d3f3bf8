"""The composition root of the API: the only place that knows which store, queue and storage are used."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi

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
    connect,
    connect_async,
)
from service.access import identify
from service.context import Context
from service.fetching import Fetcher
from service.metrics import QueueCollector, ServiceMetrics, WebhookCollector
from service.pace import Paces
from service.polled import PolledJobs
from service.problems import Problem, install_problems, problem_responses
from service.routes import batches, estimate, events, files, health, jobs, pages, profiles, upscale, webhooks
from service.shell import Shell
from service.shortcut import PollShortcut
from service.sweeper import sweep_for_ever
from service.throttle import Throttle
from service.waiting import WaitingRoom
from service.webhooks import Deliverer, webhook_guard

# What answers without an API key: health, metrics and the pages. All else asks for one as soon as there are keys.
_OPEN = (health, pages)
_DESCRIPTION = (
    "Super-resolution that shows what guided it and where it is unsure. "
    "Send an image to `POST /v1/upscale`, poll the job, fetch the image and one weight map per modality. "
    "Every error is `application/problem+json` (RFC 9457) with a stable `type`. "
    "A server that has API keys asks for one on every `/v1` route."
)


def create_app(settings: Settings, redis: RedisClient | None = None, blobs: BlobStore | None = None) -> FastAPI:
    """The API for `settings`; redis and blobs are opened from them unless given.

    Redis may be away: the app starts, answers 503 where it needs it, and recovers by itself.
    """
    context = _assemble(settings, redis or connect(settings.redis_url), blobs or BlobStore.open(settings.storage_url))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        beside = [
            asyncio.create_task(sweep_for_ever(context.store, context.blobs)),
            asyncio.create_task(context.ends.listen()),
        ]
        if keys := settings.webhook_keys:  # a guard of its own: lookups for requests do not hold deliveries back
            beside.append(asyncio.create_task(Deliverer(context.outbox, keys, webhook_guard(settings)).run()))
        yield
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await context.polls.close()

    app = FastAPI(title="M3ESR", version=_version(), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.context = context
    app.state.polled = PolledJobs(context)
    # Polls are most of what is asked, and routes are tried in this order.
    for module in (jobs, upscale, batches, estimate, files, events, webhooks, profiles, health, pages):
        if module in _OPEN:
            app.include_router(module.router)
        else:
            app.include_router(module.router, dependencies=[Depends(identify)], responses=problem_responses(401))
    install_problems(app)
    app.add_middleware(PollShortcut)
    app.add_middleware(Shell, max_body_bytes=settings.max_upload_bytes, metrics=context.metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _assemble(settings: Settings, redis: RedisClient, blobs: BlobStore) -> Context:
    store, heartbeats, metrics = JobStore(redis), HeartbeatRegistry(redis), ServiceMetrics()
    queue = JobQueue(redis, job_timeout_seconds=settings.job_timeout_seconds)
    outbox, awaited = Outbox(redis), connect_async(settings.redis_url)
    metrics.registry.register(QueueCollector(store, queue, heartbeats, settings.profiles))
    metrics.registry.register(WebhookCollector(outbox))
    return Context(
        settings=settings,
        redis=redis,
        store=store,
        polls=JobPolls(awaited),
        ends=JobEnds(awaited),
        batches=BatchStore(redis),
        queue=queue,
        paces=Paces(queue, heartbeats),
        blobs=blobs,
        heartbeats=heartbeats,
        keys=KeyStore(redis),
        metrics=metrics,
        throttle=Throttle(redis),
        outbox=outbox,
        webhook_guard=webhook_guard(settings),
        fetcher=Fetcher(settings),
        waiting_room=WaitingRoom(settings),
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
        schemas = schema["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        for operation in (operation for path in schema["paths"].values() for operation in path.values()):
            if "security" in operation:  # or none of them: a server without keys asks for none
                operation["security"].append({})
        for unused in (
            "HTTPValidationError",
            "ValidationError",
        ):  # FastAPI's own error shape, never sent here
            schemas.pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _version() -> str:
    try:
        return metadata.version("m3esr")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
