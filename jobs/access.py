"""API keys in Redis: who may call, what each may use; of the secret only a hash is kept."""

import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import ResponseError

from jobs import keys
from jobs.connection import RedisClient
from jobs.record import utc

MAX_NAME_LENGTH = 100
# A key in use is written to at most this often.
LAST_USED_SECONDS = 60.0
_API_KEY = re.compile(r"m3esr_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NO_DIGEST = hashlib.sha256(b"").hexdigest()  # of no secret: compared where there is no key, and never equal

# KEYS record. ARGV field, value. -> 1 set, 0 there is no such record (one that was forgotten must not come back)
_SET_FIELD = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


class ApiKey(BaseModel):
    """What is known of a key; the secret is not.

    requests_per_minute, megapixels_per_day: what it may send; 0 no limit, None the server's setting. last_used_at: to
    the minute. revoked_at: from then on it opens nothing.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^\S(.*\S)?$")
    created_at: datetime
    requests_per_minute: int | None = Field(default=None, ge=0)
    megapixels_per_day: int | None = Field(default=None, ge=0)
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class KeyStore:
    """Makes, finds and revokes keys. clock: seconds since 1970.

    Every method may raise the connection errors of redis-py (`REDIS_AWAY`).
    """

    def __init__(self, redis: RedisClient, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._set_field = redis.register_script(_SET_FIELD)

    def create(
        self, name: str, *, requests_per_minute: int | None = None, megapixels_per_day: int | None = None
    ) -> tuple[ApiKey, str]:
        """A new key and, this once, its secret. Raises ValueError for an empty or long name or a negative limit."""
        now = self._clock()
        key = ApiKey(
            id=secrets.token_hex(8),
            name=name,
            created_at=utc(now),
            requests_per_minute=requests_per_minute,
            megapixels_per_day=megapixels_per_day,
        )
        secret = f"m3esr_{key.id}_{secrets.token_urlsafe(32)}"
        pipeline = self._redis.pipeline()
        pipeline.hset(
            keys.api_key_key(key.id),
            mapping={"base": key.model_dump_json(exclude_none=True), "digest": _digest(secret)},
        )
        pipeline.zadd(keys.API_KEYS, {key.id: now})
        pipeline.execute()
        return key, secret

    def list_keys(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        ids = [raw.decode() for raw in self._redis.zrange(keys.API_KEYS, 0, -1)]
        pipeline = self._redis.pipeline(transaction=False)
        for key_id in ids:
            pipeline.hgetall(keys.api_key_key(key_id))
        found = [{name.decode(): value.decode() for name, value in raw.items()} for raw in pipeline.execute()]
        return [_read(fields) for fields in found if fields]

    def authenticate(self, secret: str) -> ApiKey | None:
        """The key whose secret this is; None when there is none, or it is revoked."""
        key_id = key_id_in(secret)
        if key_id is None:
            return None
        fields = self._redis.hgetall(keys.api_key_key(key_id))
        key = open_key(secret, {name.decode(): value.decode() for name, value in fields.items()})
        if key is None:
            return None
        now = self._clock()
        if is_use_to_be_noted(key, now):
            # A Redis that is full takes no writes: that is no reason to refuse who only reads.
            with contextlib.suppress(ResponseError):
                self._set_field(keys=[keys.api_key_key(key.id)], args=["last_used_at", now])
        return key

    def is_configured(self) -> bool:
        """Whether there are keys. Revoked ones count: revoking the last must not open the door to everybody."""
        return bool(self._redis.exists(keys.API_KEYS))

    def revoke(self, key_id: str) -> bool:
        """Make a key open nothing from now on; False when there is none of that id."""
        fields = self._redis.hgetall(keys.api_key_key(key_id))
        if not fields:
            return False
        if b"revoked_at" not in fields:
            self._set_field(keys=[keys.api_key_key(key_id)], args=["revoked_at", self._clock()])
        return True

    def forget(self, key_id: str) -> bool:
        """Delete the record of a revoked key; False when there is none of that id, or it is still good."""
        if not self._redis.hexists(keys.api_key_key(key_id), "revoked_at"):
            return False
        pipeline = self._redis.pipeline()
        pipeline.delete(keys.api_key_key(key_id))
        pipeline.zrem(keys.API_KEYS, key_id)
        pipeline.execute()
        return True


def key_id_in(secret: str) -> str | None:
    """The id of the key that a secret claims to open; None when it is no secret of ours."""
    match = _API_KEY.fullmatch(secret)
    return match[1] if match else None


def open_key(secret: str, fields: Mapping[str, str]) -> ApiKey | None:
    """The key whose hash in Redis holds these fields (none: there is no such key), when the secret opens it."""
    if not hmac.compare_digest(_digest(secret), fields.get("digest", _NO_DIGEST)):
        return None
    key = _read(fields)
    return key if key.revoked_at is None else None


def is_use_to_be_noted(key: ApiKey, now: float) -> bool:
    """Whether `last_used_at` is due to be written; now: seconds since 1970."""
    return key.last_used_at is None or now - key.last_used_at.timestamp() >= LAST_USED_SECONDS


def _digest(secret: str) -> str:
    # A plain hash is enough: the secret is 256 random bits, so there is no list of likely ones to try, which is what
    # slow hashes of passwords guard against.
    return hashlib.sha256(secret.encode()).hexdigest()


def _read(fields: Mapping[str, str]) -> ApiKey:
    moments: dict[str, Any] = {
        name: utc(float(fields[name])) for name in ("last_used_at", "revoked_at") if name in fields
    }
    return ApiKey.model_validate_json(fields["base"]).model_copy(update=moments)
