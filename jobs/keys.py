"""The names of everything this project keeps in Redis."""

import re
import secrets

TASK_NAME = "worker.tasks.upscale"
SEQUENCE = "m3esr:sequence"  # counts accepted jobs; their order everywhere
JOB_INDEX = "m3esr:jobs"  # ZSET id of a job without an owner by sequence, newest listed first; see index_key
EXPIRY = "m3esr:expiry"  # ZSET job id by the time its files go, seconds since 1970
COUNTERS = "m3esr:counters"  # HASH "profile|state|reason" -> jobs ended so
LEASES = "m3esr:leases"  # ZSET id of a running job by the time its lease runs out, seconds since 1970
RECOVERIES = "m3esr:recoveries"  # HASH cause -> how often a job was brought back from it
REAPER_LOCK = "m3esr:reaper"  # STRING with the one reaper at work
OUTBOX = "m3esr:webhooks"  # ZSET id of a job whose webhook is to be sent by the time of its next try, as above
DEAD_WEBHOOKS = "m3esr:webhooks:dead"  # ZSET id of a job whose webhook was given up by the time of that
WEBHOOK_DELIVERIES = "m3esr:webhooks:deliveries"  # HASH outcome -> tries that came out so
ENDED = "m3esr:ended"  # channel that tells the id of each job as it ends
WORKERS = "m3esr:workers"  # ZSET worker id by the time its heartbeat runs out
API_KEYS = "m3esr:api-keys"  # ZSET id of an API key, revoked ones too, by the time it was made
LINE = "m3esr:line"  # prefix of the lines, see line_key
TURNS = "m3esr:turns"  # prefix, see turns_key
RATE_LIMITS = "m3esr:limits"  # prefix of the counters that the limits library keeps

_MINTED_ID = re.compile(r"[0-9a-f]{32}")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_job_id() -> str:
    """An id nobody can guess (128 random bits), of the characters RQ and file names take."""
    return secrets.token_hex(16)


def is_job_id(text: str) -> bool:
    """Whether `text` could be an id; anything else must reach neither Redis nor the storage."""
    return _JOB_ID.fullmatch(text) is not None


def is_minted_id(text: str) -> bool:
    """Whether `text` looks like what `new_job_id` makes; a folder named otherwise is not ours to delete."""
    return _MINTED_ID.fullmatch(text) is not None


def job_key(job_id: str) -> str:
    """HASH of one job."""
    return f"m3esr:job:{job_id}"


def index_key(owner: str) -> str:
    """ZSET of the jobs of one owner by sequence. Each job is in one of these; owner: id of an API key, or empty."""
    return f"{JOB_INDEX}:{owner}" if owner else JOB_INDEX


def api_key_key(key_id: str) -> str:
    """HASH of one API key."""
    return f"m3esr:api-key:{key_id}"


def webhook_key(job_id: str) -> str:
    """HASH of the webhook that tells the end of one job."""
    return f"m3esr:webhook:{job_id}"


def queue_name(profile: str) -> str:
    """Name of the profile's RQ queue: one queue per profile, one queue per worker."""
    return f"m3esr:{profile}"


def rq_list(profile: str) -> str:
    """LIST in which RQ keeps the dispatches of a profile."""
    return f"rq:queue:{queue_name(profile)}"


def rq_intermediate_list(profile: str) -> str:
    """LIST of the dispatches a worker took and has not registered yet."""
    return f"{rq_list(profile)}:intermediate"


def waiting_key(profile: str) -> str:
    """ZSET of all waiting jobs of the profile by sequence."""
    return f"m3esr:waiting:{profile}"


def line_key(profile: str, owner: str) -> str:
    """ZSET of one owner's waiting jobs of the profile, in the order in which they run (`jobs.line_scripts`)."""
    return f"{LINE}:{profile}:{owner}"


def turns_key(profile: str) -> str:
    """ZSET of the owners who have waiting jobs of the profile, whose turn is next first."""
    return f"{TURNS}:{profile}"


def line_keys(profile: str, owner: str) -> list[str]:
    """The three places of a waiting job."""
    return [waiting_key(profile), line_key(profile, owner), turns_key(profile)]


def durations_key(profile: str) -> str:
    """LIST of the last runs of a profile, newest first: seconds, and the work that was in it (`jobs.estimate`)."""
    return f"m3esr:durations:{profile}"


def worker_key(worker_id: str) -> str:
    """STRING with one worker's heartbeat."""
    return f"m3esr:worker:{worker_id}"


def batch_key(batch_id: str) -> str:
    """STRING with the jobs of one batch."""
    return f"m3esr:batch:{batch_id}"


def idempotency_key(digest: str, owner: str) -> str:
    """STRING with the job an Idempotency-Key of `owner` led to; digest: of the caller's key."""
    return f"m3esr:idempotency:{owner}:{digest}" if owner else f"m3esr:idempotency:{digest}"
