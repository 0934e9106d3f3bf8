"""Word of a job's end: who waits for it is woken by Redis, rather than asking over and over."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from redis.exceptions import RedisError

from jobs import keys
from jobs.connection import RedisClient

RETRY_SECONDS = 1.0
# How long one look for a message takes; between two the connection is checked.
LISTEN_SECONDS = 5.0


class JobEnds:
    """Wakes those who wait in one event loop. redis: of `connect_async`.

    Redis keeps no message for who is not there: word is lost with a connection that breaks, and where the user may not
    use the channel. So who waits must ask of the job as well, before the first wait and now and then.
    """

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """While entered: an event that is set whenever the job ends."""
        ended = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(ended)
        try:
            yield ended
        finally:
            self._waiting[job_id].discard(ended)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def listen(self) -> None:
        """Pass on what Redis tells, for ever; one task for the whole process."""
        is_heard = True
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(keys.ENDED)
                    is_heard = True
                    while True:
                        self._pass_on(await channel.get_message(timeout=LISTEN_SECONDS))
            except RedisError as error:
                if is_heard:  # once an outage
                    structlog.get_logger(__name__).warning("ends_not_heard", reason=str(error))
                is_heard = False
                await asyncio.sleep(RETRY_SECONDS)

    def _pass_on(self, message: dict[str, bytes] | None) -> None:
        if message is not None:
            for ended in self._waiting.get(message["data"].decode(), ()):
                ended.set()
