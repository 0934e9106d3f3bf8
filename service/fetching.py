"""Images by address: the API fetches what a `url` names, from where the guard lets it, within size and time."""

import asyncio
import ssl

import httpx

from jobs import JobError, Settings
from service.outbound import BlockedUrl, Guard, UnresolvedName, open_client
from service.outbound.guard import Lookup, look_up

MAX_AT_ONCE = 8  # each may hold as many bytes as a body
_FIELD = "url"
# What a compressed body unfolds to is not bounded by what is read of it.
_HEADERS = {"User-Agent": "m3esr-fetch", "Accept": "image/*", "Accept-Encoding": "identity"}


class Fetcher:
    """Fetches images. tls: certificates to trust, by default those of httpx or SSL_CERT_FILE."""

    def __init__(self, settings: Settings, *, tls: ssl.SSLContext | None = None, lookup: Lookup = look_up) -> None:
        self._settings = settings
        self._guard = Guard(
            allow_http=settings.url_input_allow_http, allow_private=settings.url_input_allow_private, lookup=lookup
        )
        self._tls = tls
        self._free = asyncio.Semaphore(MAX_AT_ONCE)

    async def fetch(self, url: str) -> bytes:
        """The bytes at `url`; what they are is for the decoder to say, not for their sender.

        Raises JobError invalid-option, url-not-fetched, body-too-large or empty-file. An address that must not be
        reached and a name that does not exist sound the same: the API is no map of the network.
        """
        if not self._settings.allow_url_input:
            raise JobError("invalid-option", "url: this server fetches no images; send a file.", field=_FIELD)
        try:
            parsed = self._guard.parse(url)
        except BlockedUrl as error:
            raise JobError("invalid-option", f"url: {error}.", field=_FIELD) from error
        try:
            # A limit for the whole: httpx's are for each read, and a server may drip.
            async with asyncio.timeout(self._settings.url_input_seconds), self._free:
                data = await self._get(parsed)
        except (BlockedUrl, UnresolvedName) as error:
            detail = "url: its host has no address that this server fetches from."
            raise JobError("invalid-option", detail, field=_FIELD) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            seconds = self._settings.url_input_seconds
            raise _not_fetched(f"it did not come within {seconds:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise _not_fetched("its server cannot be reached, or broke off") from error
        if not data:
            raise JobError("empty-file", "The file has 0 bytes.", field=_FIELD)
        return data

    async def _get(self, url: httpx.URL) -> bytes:
        self._tls = self._tls or httpx.create_ssl_context()  # takes a while: not for servers that never fetch
        limit, data = self._settings.max_upload_bytes, bytearray()
        async with (
            open_client(self._guard, self._tls, self._settings.url_input_seconds) as client,
            client.stream("GET", url, headers=_HEADERS) as response,
        ):
            if response.status_code != 200:
                redirects = "; redirects are not followed" if response.is_redirect else ""
                raise _not_fetched(f"its server answered {response.status_code}{redirects}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise _not_fetched("its server sent it compressed, though it was asked not to")
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > limit:
                    detail = f"url: the file has more than {limit} bytes; this server takes no more."
                    raise JobError("body-too-large", detail, field=_FIELD)
        return bytes(data)


def _not_fetched(reason: str) -> JobError:
    return JobError("url-not-fetched", f"url: {reason}.", field=_FIELD)
