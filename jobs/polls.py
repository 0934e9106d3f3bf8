"""One question to Redis for one poll: the caller's key and the job, in a single awaited round trip."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from jobs import keys
from jobs.connection import RedisClient
from jobs.record import JobRecord
from jobs.store import read_record

# KEYS job, api_keys, api_key. -> JSON: whether there are keys (0 or 1), the fields of the key, those of the job.
# One string, because the client takes far longer to read a list of many.
_POLL = """
return cjson.encode({redis.call('EXISTS', KEYS[2]), redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[1])})
"""


@dataclass(frozen=True)
class PollAnswer:
    """has_keys: whether the server has API keys. key: fields of the one asked for. record: of the job, or None."""

    has_keys: bool
    key: dict[str, str]
    record: JobRecord | None


class JobPolls:
    """Answers polls from Redis. redis: of `connect_async`. May raise the connection errors of redis-py."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._poll = redis.register_script(_POLL)

    async def ask(self, job_id: str, key_id: str | None) -> PollAnswer:
        """The job, and the API key of that id, as they stand at one moment."""
        # What cannot be an id must not become a name in Redis: an empty one is never a job's.
        job_key = keys.job_key(job_id if keys.is_job_id(job_id) else "")
        answer = await self._poll(keys=[job_key, keys.API_KEYS, keys.api_key_key(key_id or "")])
        has_keys, key, fields = json.loads(answer)
        return PollAnswer(bool(has_keys), _pairs(key), read_record(_pairs(fields)) if fields else None)

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()


def _pairs(flat: Sequence[str] | dict[str, str]) -> dict[str, str]:
    # Lua has one kind of table: an empty one arrives as {}.
    return {} if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
