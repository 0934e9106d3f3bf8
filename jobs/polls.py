"""One question to Redis for one poll: the caller's key and the job, in a single awaited round trip."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from redis.exceptions import NoScriptError

from jobs import keys
from jobs.connection import RedisClient
from jobs.line_scripts import PLACE
from jobs.record import JobRecord, read_record

# Records kept from one poll to the next: of jobs that are polled now, not of all there are.
KEPT_RECORDS = 256

# KEYS job, api_keys, api_key. ARGV id, known sequence, known version.
# -> JSON: whether there are keys (0 or 1), the fields of the key, those of the job (none when it is as known), whether
# it is as known, its place in line (-1: in none). One string: the client takes far longer to read a list of many.
_POLL = (
    PLACE
    + f"""
local state = redis.call('HMGET', KEYS[1], 'sequence', 'version', 'status')
local position, is_known = -1, state[1] == ARGV[2] and state[2] == ARGV[3]
if state[3] == 'queued' then
  local base = cjson.decode(redis.call('HGET', KEYS[1], 'base'))
  local lines, turns = '{keys.LINE}:' .. base.profile .. ':', '{keys.TURNS}:' .. base.profile
  position = place(lines, turns, base.owner or '', ARGV[1]) or -1
end
return cjson.encode({{redis.call('EXISTS', KEYS[2]), redis.call('HGETALL', KEYS[3]),
                     is_known and {{}} or redis.call('HGETALL', KEYS[1]), is_known, position}})
"""
)
_POLL_SHA = hashlib.sha1(_POLL.encode()).hexdigest()  # the name that Redis gives it


@dataclass(frozen=True)
class PollAnswer:
    """has_keys: whether the server has API keys. key: fields of the one asked for. record: of the job, or None.

    position: how many jobs wait before it; None when it does not wait.
    """

    has_keys: bool
    key: dict[str, str]
    record: JobRecord | None
    position: int | None


class JobPolls:
    """Answers polls from Redis. redis: of `connect_async`. May raise the connection errors of redis-py."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._kept: OrderedDict[str, JobRecord] = OrderedDict()

    async def ask(self, job_id: str, key_id: str | None) -> PollAnswer:
        """The job, and the API key of that id, as they stand at one moment.

        A record that did not change is the very object of the poll before: Redis is asked for its version only.
        """
        # What cannot be an id must not become a name in Redis: an empty one is never a job's.
        job_key = keys.job_key(job_id if keys.is_job_id(job_id) else "")
        known = self._kept.get(job_id)
        places = (job_key, keys.API_KEYS, keys.api_key_key(key_id or ""))
        answer = await self._run(*places, job_id, *((known.sequence, known.version) if known else ("", "")))
        has_keys, key, fields, is_known, position = json.loads(answer)
        record = known if is_known else read_record(_pairs(fields)) if fields else None
        self._keep(job_id, record)
        return PollAnswer(bool(has_keys), _pairs(key), record, None if position < 0 else position)

    async def _run(self, *keys_and_args: str | int) -> bytes:
        # What redis-py's own Script does, without what that looks up anew for each call.
        try:
            return cast(bytes, await self._redis.execute_command("EVALSHA", _POLL_SHA, 3, *keys_and_args))
        except NoScriptError:  # the first poll, or the first after Redis was started again
            return cast(bytes, await self._redis.execute_command("EVAL", _POLL, 3, *keys_and_args))

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    def _keep(self, job_id: str, record: JobRecord | None) -> None:
        self._kept.pop(job_id, None)
        if record is not None:
            self._kept[job_id] = record
            if len(self._kept) > KEPT_RECORDS:
                self._kept.popitem(last=False)


def _pairs(flat: Sequence[str] | dict[str, str]) -> dict[str, str]:
    # Lua has one kind of table: an empty one arrives as {}.
    return {} if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
