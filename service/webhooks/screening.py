"""Screening: a webhook_url is refused when it is sent, and not only when it is of no use."""

from jobs import JobError, Settings
from service.outbound import BlockedUrl, Guard, UnresolvedName

_FIELD = "webhook_url"


def webhook_guard(settings: Settings) -> Guard:
    """A guard that knows where webhooks may go."""
    return Guard(allow_http=settings.webhook_allow_http, allow_private=settings.webhook_allow_private)


async def screen_webhook(url: str | None, settings: Settings, guard: Guard) -> None:
    """Raise JobError invalid-option when a webhook could not, or must not, be sent to `url`.

    A name that is not ours to reach and one that does not exist sound the same: the API is no map of the network.
    """
    if url is None:
        return
    if not settings.webhook_keys:
        raise JobError("invalid-option", f"{_FIELD}: this server sends no webhooks; it has no secret.", field=_FIELD)
    try:
        parsed = guard.parse(url)
    except BlockedUrl as error:
        raise JobError("invalid-option", f"{_FIELD}: {error}.", field=_FIELD) from error
    try:
        await guard.addresses(parsed)
    except (BlockedUrl, UnresolvedName) as error:
        detail = f"{_FIELD}: its host has no address that this server sends webhooks to."
        raise JobError("invalid-option", detail, field=_FIELD) from error
