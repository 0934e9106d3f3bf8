"""How this project opens Redis, in one place."""

from typing import Any, TypeAlias

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

# redis-py types every command as "answer or awaitable answer", and its stubs disagree with it about generics;
# no caller could be checked against either. The few calls made here are checked by tests on a real server.
RedisClient: TypeAlias = Any

# What a caller catches to tell "Redis is away" from a fault of its own.
REDIS_AWAY: tuple[type[RedisError], ...] = (RedisConnectionError, RedisTimeoutError)


def connect(redis_url: str, *, timeout_seconds: float | None = 2.0) -> RedisClient:
    """A client for `redis_url`; nothing is sent until its first command.

    timeout_seconds: longest wait for one answer. The service keeps it short, so that a lost Redis is a quick
    503; a worker, which blocks on the queue, passes None.
    """
    options: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    if timeout_seconds is not None:
        # One more try, at once: it gets past a pooled connection that died with the last server.
        # redis-py's own default goes on trying for seconds, which a request has not.
        options["retry"] = Retry(NoBackoff(), 1)
    return Redis.from_url(redis_url, health_check_interval=30, **options)


def connect_async(redis_url: str, *, timeout_seconds: float = 2.0) -> RedisClient:
    """As `connect`, but its commands are awaited: for what is asked so often that a thread each is too dear.

    One event loop may use it, and must `aclose` it.
    """
    return AsyncRedis.from_url(
        redis_url,
        health_check_interval=30,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=AsyncRetry(NoBackoff(), 1),
    )
