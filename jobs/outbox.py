"""The outbox: webhooks of jobs that ended, until they are delivered or given up."""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from jobs import keys, webhook_scripts
from jobs.connection import RedisClient
from jobs.errors import JobError
from jobs.record import JobStatus, utc
from jobs.store import TOMBSTONE_SECONDS

# A deliverer that is silent for this long is dead: another sends the webhook again. Well above one try.
CLAIM_SECONDS = 60.0
# Due webhooks that one round looks at: so many to receivers that are busy do not hide those to others.
MAX_LOOKED_AT = 1_000
# How long a webhook that was given up can be sent again, and how many of them are kept.
DEAD_SECONDS = 7 * 86_400
MAX_DEAD = 10_000


class WebhookState(StrEnum):
    """pending: to be sent, or sent again. delivered: the receiver took it. dead: given up, until it is replayed."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class WebhookOutcome(StrEnum):
    """How one try came out.

    REJECTED: an answer other than 2xx. GONE: 410, send no more. BLOCKED: an address that webhooks must not reach.
    UNREACHABLE: no address, no connection or no valid certificate. INTERRUPTED: the deliverer died over it.
    """

    DELIVERED = "delivered"
    REJECTED = "rejected"
    GONE = "gone"
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"


class Webhook(BaseModel):
    """What is sent of one job's end, and how far that is. claim: of the deliverer that sends it now, else empty.

    attempts: tries since the job ended or the webhook was replayed. replays: of the job, before this end of it.
    last_status: the HTTP status of the last try.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    url: str
    event: str
    status: JobStatus
    ended_at: datetime
    state: WebhookState
    attempts: int
    replays: int = 0
    claim: str = ""
    last_outcome: WebhookOutcome | None = None
    last_status: int | None = None
    next_attempt_at: datetime | None = None

    @property
    def id(self) -> str:
        """The webhook-id: the same in every try and replay of the webhook; a replayed job ends anew, with a new id."""
        return f"msg_{self.job_id}" + (f"_{self.replays}" if self.replays else "")

    def body(self) -> bytes:
        """The JSON to send, the same bytes in every try: no image, no prompt."""
        payload = {
            "type": self.event,
            "timestamp": self.ended_at.isoformat(),
            "data": {"job_id": self.job_id, "status": self.status.value, "url": f"/v1/jobs/{self.job_id}"},
        }
        return json.dumps(payload, separators=(",", ":")).encode()


class Outbox:
    """Hands each webhook to one deliverer at a time. The scripts that end a job fill it (`jobs.scripts`).

    clock: seconds since 1970. Every method may raise the connection errors of redis-py (`REDIS_AWAY`).
    """

    def __init__(self, redis: RedisClient, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._claim = redis.register_script(webhook_scripts.CLAIM)
        self._settle = redis.register_script(webhook_scripts.SETTLE)
        self._replay = redis.register_script(webhook_scripts.REPLAY)
        self._forget = redis.register_script(webhook_scripts.FORGET)

    def get(self, job_id: str) -> Webhook | None:
        """The webhook of a job that ended; None when it asked for none, or it is forgotten."""
        fields = self._redis.hgetall(keys.webhook_key(job_id))
        return _read(job_id, fields) if fields else None

    def claim_due(self, *, limit: int, may_send: Callable[[str], bool] = lambda url: True) -> list[Webhook]:
        """Up to `limit` webhooks whose time has come, longest due first; nobody else gets them for `CLAIM_SECONDS`.

        may_send: asked with the URL of each before it is claimed; those it declines stay for later.
        """
        claimed: list[Webhook] = []
        now = self._clock()
        due = [raw.decode() for raw in self._redis.zrangebyscore(keys.OUTBOX, "-inf", now, start=0, num=MAX_LOOKED_AT)]
        for job_id, url in zip(due, self._urls(due), strict=True):
            if len(claimed) == limit:
                break
            if not may_send(url):
                continue
            pairs = self._claim(
                keys=[keys.webhook_key(job_id), keys.OUTBOX],
                args=[job_id, now, now + CLAIM_SECONDS, secrets.token_hex(8)],
            )
            if pairs:
                claimed.append(_read(job_id, dict(zip(pairs[::2], pairs[1::2], strict=True))))
        return claimed

    def _urls(self, job_ids: list[str]) -> list[str]:
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hget(keys.webhook_key(job_id), "url")
        return [(url or b"").decode() for url in pipeline.execute()]

    def settle(
        self,
        webhook: Webhook,
        outcome: WebhookOutcome,
        *,
        http_status: int | None = None,
        retry_seconds: float | None = None,
    ) -> bool:
        """Note how a claimed webhook's try came out; False (nothing changed) when another deliverer has it by now.

        retry_seconds: try again after this time; None gives it up, unless it was delivered.
        """
        now = self._clock()
        if outcome is WebhookOutcome.DELIVERED:
            state = WebhookState.DELIVERED
        else:
            state = WebhookState.DEAD if retry_seconds is None else WebhookState.PENDING
        is_noted = self._settle(
            keys=[keys.webhook_key(webhook.job_id), keys.OUTBOX, keys.DEAD_WEBHOOKS, keys.WEBHOOK_DELIVERIES],
            args=[
                webhook.job_id,
                webhook.claim,
                state.value,
                outcome.value,
                "" if http_status is None else http_status,
                int(outcome is WebhookOutcome.GONE),
                now + (retry_seconds or 0.0),
                now,
                DEAD_SECONDS,
                TOMBSTONE_SECONDS,
            ],
        )
        if is_noted and state is WebhookState.DEAD:
            self._trim_dead(now)
        return bool(is_noted)

    def replay(self, job_id: str) -> Webhook:
        """Send the webhook of a job anew, at once and with the whole schedule; one that is being sent goes on.

        Raises JobError webhook-not-found, or webhook-disabled when its receiver answered 410.
        """
        places = [keys.webhook_key(job_id), keys.OUTBOX, keys.DEAD_WEBHOOKS]
        answer = self._replay(keys=places, args=[job_id, self._clock()])
        if answer == b"disabled":
            raise JobError("webhook-disabled", "The receiver answered 410 Gone; nothing is sent to it for this job.")
        webhook = self.get(job_id) if answer else None
        if webhook is None:
            raise JobError(
                "webhook-not-found",
                "The job asked for no webhook, did not end in one of its events, or it is forgotten.",
            )
        return webhook

    def num_pending(self) -> int:
        """How many webhooks are to be sent, now or later."""
        return int(self._redis.zcard(keys.OUTBOX))

    def num_dead(self) -> int:
        """How many webhooks were given up and can be replayed."""
        self._redis.zremrangebyscore(keys.DEAD_WEBHOOKS, "-inf", self._clock() - DEAD_SECONDS)
        return int(self._redis.zcard(keys.DEAD_WEBHOOKS))

    def deliveries(self) -> dict[str, int]:
        """How many tries came out how, by `WebhookOutcome`."""
        counts = self._redis.hgetall(keys.WEBHOOK_DELIVERIES)
        return {outcome.decode(): int(count) for outcome, count in counts.items()}

    def _trim_dead(self, now: float) -> None:
        self._redis.zremrangebyscore(keys.DEAD_WEBHOOKS, "-inf", now - DEAD_SECONDS)  # their hashes expire alike
        for raw in self._redis.zrange(keys.DEAD_WEBHOOKS, 0, -1 - MAX_DEAD):
            places = [keys.webhook_key(raw.decode()), keys.OUTBOX, keys.DEAD_WEBHOOKS]
            self._forget(keys=places, args=[raw.decode()])


def _read(job_id: str, raw: Mapping[bytes, bytes]) -> Webhook:
    fields: dict[str, object] = {name.decode(): value.decode() for name, value in raw.items()}
    for name in ("ended_at", "next_attempt_at"):
        if name.encode() in raw:
            fields[name] = utc(float(raw[name.encode()]))
    return Webhook.model_validate({"job_id": job_id, **fields})
