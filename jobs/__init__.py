"""The contract between the service and the worker: job records, options, queue, blob store, settings."""

from jobs.access import ApiKey, KeyStore
from jobs.batches import Batch, BatchStore
from jobs.blobs import BlobStore, input_key, map_key, preview_key, result_key
from jobs.connection import REDIS_AWAY, RedisClient, connect, connect_async
from jobs.ends import JobEnds
from jobs.errors import ERROR_KINDS, PROBLEM_TYPE_PREFIX, JobError
from jobs.estimate import Work, plan_work
from jobs.heartbeat import HeartbeatRegistry, WorkerHeartbeat
from jobs.keys import TASK_NAME, is_job_id, new_job_id, queue_name
from jobs.logs import configure_logs
from jobs.options import CONTENT_TYPES, MODALITIES, OutputFormat, UpscaleRequest
from jobs.outbox import Outbox, Webhook, WebhookOutcome, WebhookState
from jobs.polls import JobPolls
from jobs.profiles import PROFILES, Licence, Profile, find_profile
from jobs.queue import JobQueue
from jobs.record import (
    ErrorInfo,
    InputInfo,
    JobOutcome,
    JobRecord,
    JobStatus,
    MapInfo,
    ModelInfo,
    NewJob,
    PreviewInfo,
    Progress,
    ResultInfo,
    Trust,
)
from jobs.recovery import Recovery
from jobs.settings import Settings
from jobs.store import LEASE_SECONDS, JobStore, Signal

__all__ = [
    "CONTENT_TYPES",
    "ERROR_KINDS",
    "LEASE_SECONDS",
    "MODALITIES",
    "PROBLEM_TYPE_PREFIX",
    "PROFILES",
    "REDIS_AWAY",
    "TASK_NAME",
    "ApiKey",
    "Batch",
    "BatchStore",
    "BlobStore",
    "ErrorInfo",
    "HeartbeatRegistry",
    "InputInfo",
    "JobEnds",
    "JobError",
    "JobOutcome",
    "JobPolls",
    "JobQueue",
    "JobRecord",
    "JobStatus",
    "JobStore",
    "KeyStore",
    "Licence",
    "MapInfo",
    "ModelInfo",
    "NewJob",
    "Outbox",
    "OutputFormat",
    "PreviewInfo",
    "Profile",
    "Progress",
    "Recovery",
    "RedisClient",
    "ResultInfo",
    "Settings",
    "Signal",
    "Trust",
    "UpscaleRequest",
    "Webhook",
    "WebhookOutcome",
    "WebhookState",
    "Work",
    "WorkerHeartbeat",
    "configure_logs",
    "connect",
    "connect_async",
    "find_profile",
    "input_key",
    "is_job_id",
    "map_key",
    "new_job_id",
    "plan_work",
    "preview_key",
    "queue_name",
    "result_key",
]
