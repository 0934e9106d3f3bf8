"""Who calls: the API key of a request, and whether this server answers callers without one."""

import ipaddress
from typing import Annotated

import structlog
from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from jobs import ApiKey, JobError, Settings
from service.caller import Caller
from service.context import Context, ContextDep

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
    # Both are tried: what stands in `Authorization` may be meant for a proxy before us.
    secrets = [bearer.credentials if bearer else None, header]
    key = await run_in_threadpool(_find_key, context, [secret for secret in secrets if secret])
    caller = Caller.of(key, context.settings)
    if caller.id:
        structlog.contextvars.bind_contextvars(api_key_id=caller.id)
    return caller


def _find_key(context: Context, secrets: list[str]) -> ApiKey | None:
    key = next(filter(None, map(context.keys.authenticate, secrets)), None)
    # Without keys nobody is asked for one, and what a client or a proxy sends on its own account is no fault.
    if key is None and (context.keys.is_configured() or not is_open_to_anonymous(context.settings)):
        raise JobError("unauthorized", "Send a valid API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.")
    return key


CallerDep = Annotated[Caller, Depends(identify)]


def is_open_to_anonymous(settings: Settings) -> bool:
    """Whether callers without a key are answered while no keys are configured."""
    return settings.allow_anonymous or is_loopback(settings.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost counts as open."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
