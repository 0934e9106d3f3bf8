"""How much a caller may send: requests per minute and output pixels per day, counted in Redis for all services."""

import contextlib
import math
import time

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute, WindowStats
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from jobs import REDIS_AWAY, JobError, RedisClient
from jobs.keys import RATE_LIMITS
from service.caller import Caller

PIXELS = 1_000_000  # in a megapixel


class Throttle:
    """Counts what each caller sends; the anonymous ones together.

    Requests: any 60 s hold at most so many. Pixels: a day starts with the first job of a caller and lasts 24 h.
    """

    def __init__(self, redis: RedisClient) -> None:
        # Our own pool is handed on, so that every kind of address works and waits are as short as elsewhere; the
        # address here only says which client library it is.
        storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=RATE_LIMITS)
        self._storage = storage
        self._requests = MovingWindowRateLimiter(storage)
        self._pixels = FixedWindowRateLimiter(storage)

    def admit(self, caller: Caller, num_images: int = 1) -> None:
        """Count the request with which an image comes, or those of more images. Raises JobError rate-limited."""
        limit = _per_minute(caller)
        if limit is None or self._requests.hit(limit, _name(caller), cost=num_images):
            return
        raise JobError(
            "rate-limited",
            f"{limit.amount} images a minute may be sent.",
            retry_after_seconds=_seconds_left(self._requests.get_window_stats(limit, _name(caller))),
        )

    def charge(self, caller: Caller, num_pixels: int) -> None:
        """Count the output pixels of a job. Raises JobError quota-exceeded; too-many-pixels when waiting is no use."""
        quota = _per_day(caller)
        if quota is None:
            return
        if num_pixels > quota.amount:
            detail = (
                f"The result has {num_pixels / PIXELS:.1f} megapixels; {caller.megapixels_per_day} a day are allowed."
            )
            raise JobError("too-many-pixels", detail, field="file")
        # Asked first: a hit counts also when it is refused, and until it is taken back it would be in others' way.
        if self._pixels.test(quota, _name(caller), cost=num_pixels):
            if self._pixels.hit(quota, _name(caller), cost=num_pixels):
                return
            self.refund(caller, num_pixels)
        stats = self._pixels.get_window_stats(quota, _name(caller))
        raise JobError(
            "quota-exceeded",
            f"The result has {num_pixels / PIXELS:.1f} megapixels; {stats.remaining / PIXELS:.1f} of "
            f"{caller.megapixels_per_day} are left for this day.",
            retry_after_seconds=_seconds_left(stats),
        )

    def refund(self, caller: Caller, num_pixels: int) -> None:
        """Take a charge back: the job was not accepted after all. Silent when Redis is away."""
        quota = _per_day(caller)
        if quota is None:
            return
        place = quota.key_for(_name(caller))
        with contextlib.suppress(*REDIS_AWAY):
            if self._storage.get(place) >= num_pixels:  # else a new day began, which owes nothing
                self._storage.incr(place, quota.get_expiry(), amount=-num_pixels)

    def headers(self, caller: Caller) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10); none without a limit."""
        policies, states = [], []
        if (limit := _per_minute(caller)) is not None:
            stats = self._requests.get_window_stats(limit, _name(caller))
            policies.append(f'"requests";q={limit.amount};w={limit.get_expiry()}')
            states.append(f'"requests";r={stats.remaining};t={_seconds_left(stats)}')
        if (quota := _per_day(caller)) is not None:
            stats = self._pixels.get_window_stats(quota, _name(caller))
            policies.append(f'"megapixels";q={caller.megapixels_per_day};qu="megapixels";w={quota.get_expiry()}')
            states.append(f'"megapixels";r={stats.remaining // PIXELS};t={_seconds_left(stats)}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)} if policies else {}


def _per_minute(caller: Caller) -> RateLimitItem | None:
    amount = caller.requests_per_minute
    return RateLimitItemPerMinute(amount, namespace="requests") if amount else None


def _per_day(caller: Caller) -> RateLimitItem | None:
    amount = caller.megapixels_per_day * PIXELS
    return RateLimitItemPerDay(amount, namespace="pixels") if amount else None


def _name(caller: Caller) -> str:
    return caller.id or "anonymous"


def _seconds_left(stats: WindowStats) -> int:
    return max(1, math.ceil(stats.reset_time - time.time()))
