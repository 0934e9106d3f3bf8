"""Who calls: the API key of a request, and whether this server answers callers without one."""

import functools
import ipaddress
import time
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from jobs import ApiKey, JobError, Settings
from jobs.access import is_use_to_be_noted, key_id_in, open_key
from jobs.polls import PollAnswer
from service.caller import Caller
from service.context import Context, ContextDep, find_context

_BEARER = HTTPBearer(
    scheme_name="Bearer", description="`Authorization: Bearer m3esr_…`", bearerFormat="API key", auto_error=False
)
_HEADER = APIKeyHeader(
    name="X-API-Key", scheme_name="Header", description="The same key without a scheme before it.", auto_error=False
)


async def identify(
    context: ContextDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    header: Annotated[str | None, Security(_HEADER)],
) -> Caller:
    """Who calls. Raises JobError unauthorized.

    Asked of Redis for every request: a key that is revoked opens nothing from that moment on, and while Redis is away
    nobody is let in.
    """
    return _note(context, await run_in_threadpool(_find_key, context, _secrets(bearer, header)))


async def identify_and_poll(request: Request, job_id: str) -> tuple[Caller, PollAnswer]:
    """As `identify`, with what a poll of the job of that id finds, whosever it is: in one question to Redis."""
    context = await find_context(request)
    secrets = _secrets(await _BEARER(request), await _HEADER(request))
    asked = [(secret, key_id) for secret in secrets if (key_id := key_id_in(secret))]
    secret, key_id = asked[0] if len(asked) == 1 else ("", None)
    answer = await context.polls.ask(job_id, key_id)
    key = open_key(secret, answer.key) if key_id else None
    if len(asked) > 1 or (key and is_use_to_be_noted(key, time.time())):
        key = await run_in_threadpool(_find_key, context, secrets)
    elif key is None:
        _check_needs_no_key(context, has_keys=answer.has_keys)
    return _note(context, key), answer


def _secrets(bearer: HTTPAuthorizationCredentials | None, header: str | None) -> list[str]:
    # Both are tried: what stands in `Authorization` may be meant for a proxy before us.
    return [secret for secret in (bearer.credentials if bearer else None, header) if secret]


def _note(context: Context, key: ApiKey | None) -> Caller:
    caller = Caller.of(key, context.settings)
    if caller.id:
        structlog.contextvars.bind_contextvars(api_key_id=caller.id)
    return caller


def _find_key(context: Context, secrets: list[str]) -> ApiKey | None:
    key = next(filter(None, map(context.keys.authenticate, secrets)), None)
    if key is None:
        _check_needs_no_key(context, has_keys=context.keys.is_configured())
    return key


def _check_needs_no_key(context: Context, *, has_keys: bool) -> None:
    # Without keys nobody is asked for one, and what a client or a proxy sends on its own account is no fault.
    if has_keys or not is_open_to_anonymous(context.settings):
        raise JobError("unauthorized", "Send a valid API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.")


CallerDep = Annotated[Caller, Depends(identify)]


def is_open_to_anonymous(settings: Settings) -> bool:
    """Whether callers without a key are answered while no keys are configured."""
    return settings.allow_anonymous or is_loopback(settings.host)


@functools.cache  # asked for every request, of one address
def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost counts as open."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
