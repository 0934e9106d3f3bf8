"""The deliverer: beside the requests of every service, it sends what is due in the outbox."""

import asyncio
import contextlib
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import httpx
import structlog
from starlette.concurrency import run_in_threadpool

from jobs import REDIS_AWAY, Outbox, Webhook, WebhookOutcome
from service.outbound import BlockedUrl, Guard, UnresolvedName, open_client
from service.webhooks.signing import signed_headers

# The schedule that Standard Webhooks recommends: seconds before each try, about 75 hours in all.
PAUSES_SECONDS = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
# Receivers that came back must not be met by everything at once.
JITTER = 0.2
SEND_SECONDS = 15.0
POLL_SECONDS = 0.5
MAX_AT_ONCE = 32
# Of these to one host and port: a slow receiver must not take all hands, nor be overrun when it comes back.
MAX_PER_RECEIVER = 4
# At the end of the process; what is not sent by then is sent again by whoever comes next.
LAST_SECONDS = 3.0
log = structlog.get_logger(__name__)


class Deliverer:
    """Sends webhooks, signed with `keys`, to where `guard` lets them go; several may work on one outbox.

    tls: certificates to trust, by default those of httpx or SSL_CERT_FILE. clock: seconds since 1970. jitter: a factor
    for each pause.
    """

    def __init__(
        self,
        outbox: Outbox,
        keys: tuple[bytes, ...],
        guard: Guard,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = lambda: random.uniform(1 - JITTER, 1 + JITTER),
    ) -> None:
        self._outbox = outbox
        self._keys = keys
        self._guard = guard
        self._tls = tls or httpx.create_ssl_context()
        self._clock = clock
        self._jitter = jitter
        self._at_work: set[asyncio.Task[None]] = set()
        self._receivers: Counter[str] = Counter()  # those that are being sent to
        self._hand_is_free = asyncio.Event()

    async def run(self) -> None:
        """Deliver until cancelled; then give the tries at hand a moment to end."""
        try:
            while True:
                self._hand_is_free.clear()  # before it is asked: a hand that becomes free meanwhile may take the next
                try:
                    await self.start_due()
                except Exception as error:  # Redis is away, mostly: the next round finds the same webhooks
                    log.warning("webhooks_not_read", reason=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._hand_is_free.wait()
        finally:
            if self._at_work:
                await asyncio.wait(self._at_work, timeout=LAST_SECONDS)
            for task in self._at_work:
                task.cancel()

    async def start_due(self) -> int:
        """Claim what is due, as far as hands are free, and begin to send it; how many there were."""
        num_free = MAX_AT_ONCE - len(self._at_work)
        if not num_free:
            return 0
        taken = self._receivers.copy()

        def may_send(url: str) -> bool:
            taken[_receiver(url)] += 1
            return taken[_receiver(url)] <= MAX_PER_RECEIVER

        claimed = await run_in_threadpool(self._outbox.claim_due, limit=num_free, may_send=may_send)
        for webhook in claimed:
            self._receivers[_receiver(webhook.url)] += 1
            task = asyncio.create_task(self._deliver(webhook))
            self._at_work.add(task)
            task.add_done_callback(partial(self._note_done, _receiver(webhook.url)))
        return len(claimed)

    def _note_done(self, receiver: str, task: asyncio.Task[None]) -> None:
        self._at_work.discard(task)
        self._receivers[receiver] -= 1
        if self._receivers[receiver] == 0:
            del self._receivers[receiver]
        self._hand_is_free.set()

    async def deliver_due(self) -> int:
        """One round, to its end: how many webhooks were tried."""
        num_claimed = await self.start_due()
        if self._at_work:
            await asyncio.wait(set(self._at_work))
        return num_claimed

    async def _deliver(self, webhook: Webhook) -> None:
        started, http_status = time.monotonic(), None
        # Beyond the schedule only by deaths of deliverers, which leave no outcome: what kills them is given up.
        outcome = WebhookOutcome.INTERRUPTED
        if webhook.attempts <= len(PAUSES_SECONDS):
            outcome, http_status = await self._try(webhook)
        retry_seconds = None
        is_over = outcome in (WebhookOutcome.DELIVERED, WebhookOutcome.GONE)
        if not is_over and webhook.attempts < len(PAUSES_SECONDS):
            retry_seconds = PAUSES_SECONDS[webhook.attempts] * self._jitter()
        is_noted = False
        with contextlib.suppress(*REDIS_AWAY):  # its claim runs out, and it is sent again
            is_noted = await run_in_threadpool(
                self._outbox.settle, webhook, outcome, http_status=http_status, retry_seconds=retry_seconds
            )
        log.info(
            "webhook_tried",
            job_id=webhook.job_id,
            # Never the whole URL: path and query may be the receiver's password.
            host=_host(webhook.url),
            outcome=outcome.value,
            http_status=http_status,
            attempt=webhook.attempts,
            retry_seconds=retry_seconds,
            is_noted=is_noted,
            seconds=round(time.monotonic() - started, 3),
        )

    async def _try(self, webhook: Webhook) -> tuple[WebhookOutcome, int | None]:
        """How one try came out, with the HTTP status when there was one."""
        body = webhook.body()
        headers = signed_headers(self._keys, webhook.id, int(self._clock()), body)
        headers |= {"Content-Type": "application/json", "User-Agent": "m3esr-webhooks"}
        try:
            self._guard.parse(webhook.url)  # before httpx does, which finds words of its own for a bad URL
            # A limit for the whole: httpx's are for each read, and a receiver may drip.
            async with asyncio.timeout(SEND_SECONDS):
                status = await self._post(webhook.url, headers, body)
        except BlockedUrl:
            return WebhookOutcome.BLOCKED, None
        except (TimeoutError, httpx.TimeoutException):
            return WebhookOutcome.TIMED_OUT, None
        except (httpx.HTTPError, OSError, UnresolvedName):
            return WebhookOutcome.UNREACHABLE, None
        except Exception:
            log.exception("webhook_failed", job_id=webhook.job_id)  # ours, not the receiver's: kept and tried again
            return WebhookOutcome.INTERRUPTED, None
        if 200 <= status < 300:
            return WebhookOutcome.DELIVERED, status
        return (WebhookOutcome.GONE if status == 410 else WebhookOutcome.REJECTED), status

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        async with (
            open_client(self._guard, self._tls, SEND_SECONDS) as client,
            client.stream("POST", url, headers=headers, content=body) as response,
        ):
            return response.status_code  # the status is all there is to know: the body is never read


def _host(url: str) -> str:
    with contextlib.suppress(httpx.InvalidURL):
        return httpx.URL(url).host
    return ""


def _receiver(url: str) -> str:
    with contextlib.suppress(httpx.InvalidURL):
        return httpx.URL(url).netloc.decode()
    return ""
