"""A running API for tests: uvicorn on a free port of loopback, with a fake worker at its side."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import uvicorn

from jobs import BlobStore, RedisClient, Settings, connect
from service.app import create_app
from service.context import Context
from tests.fakes import FakeWorker, picture


@dataclass(frozen=True)
class RunningService:
    """The API under test. http: a client of it."""

    http: httpx.Client
    context: Context
    worker: FakeWorker


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[RunningService]:
    """Serve `settings` until the block ends."""
    redis: RedisClient = connect(settings.redis_url)
    blobs = BlobStore.open(settings.storage_url)
    app = create_app(settings, redis, blobs)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the API ended before it served")
                time.sleep(0.01)
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
                yield RunningService(http, app.state.context, FakeWorker(redis, blobs))
        finally:
            server.should_exit = True
            thread.join()
            redis.close()


def upload(
    http: httpx.Client, data: bytes | None = None, headers: dict[str, str] | None = None, **fields: str
) -> httpx.Response:
    """POST an image (a small one unless given) with these form fields."""
    files = {"file": ("photo.png", picture() if data is None else data)}
    return http.post("/v1/upscale", files=files, data=fields, headers=headers or {})
