"""Batches: which jobs were accepted together. How they stand is in their own records."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from jobs import keys
from jobs.connection import RedisClient
from jobs.errors import JobError

# KEYS batch. ARGV what is known of it. -> 1 gone, 0 there is none, or another
_DELETE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class Batch(BaseModel):
    """The jobs of one request, in the order of its files. owner: as in JobRecord."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str = ""
    created_at: datetime
    job_ids: tuple[str, ...]


class BatchStore:
    """Reads and forgets batches; they are made with their jobs, by `JobStore.create_all`.

    A batch runs out by itself some time after the last of its jobs. Every method may raise the connection errors of
    redis-py (`REDIS_AWAY`).
    """

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._delete = redis.register_script(_DELETE)

    def get(self, batch_id: str) -> Batch | None:
        """The batch, or None when there is none."""
        raw = self._redis.get(keys.batch_key(batch_id)) if keys.is_job_id(batch_id) else None
        return Batch.model_validate_json(raw) if raw else None

    def require_own(self, batch_id: str, owner: str) -> Batch:
        """The batch of `owner`. Raises JobError batch-not-found, for another's batch in the very same words."""
        batch = self.get(batch_id)
        if batch is None or batch.owner != owner:
            raise JobError("batch-not-found", "No batch has this id; it may have been deleted.")
        return batch

    def delete(self, batch: Batch) -> None:
        """Forget the batch; its jobs stay as they are, and so does another batch that was made under its id since."""
        self._delete(keys=[keys.batch_key(batch.id)], args=[batch.model_dump_json()])
