"""The guard against forged requests: each goes to a checked address, and to no other, whatever DNS says next."""

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable

import httpx

from service.outbound.addresses import may_reach

LOOKUP_SECONDS = 3.0
MAX_LOOKUPS_AT_ONCE = 16
# Each is tried when the one before it does not answer; more than a few only help who wants to keep us busy.
MAX_ADDRESSES = 4
_NAME = re.compile(
    r"(?=.{1,253}\.?$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
# A name that ends so is a number to getaddrinfo, in one of many notations: 2130706433, 0x7f.1, 0177.0.0.1.
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")

# Name and port to addresses, as text; blocks, and raises OSError. `socket.getaddrinfo` behind it, or a test's.
Lookup = Callable[[str, int], list[str]]


class BlockedUrl(Exception):
    """Nothing must be asked of there; the text says why, in words for the caller."""


class UnresolvedName(Exception):
    """The name has no address, or none was found in time."""


def look_up(name: str, port: int) -> list[str]:
    """The addresses of `name`, in the order the system would try them."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Guard:
    """Checks where requests go: to https, and to public addresses, unless it is told to allow more.

    lookup: asked once for each request; what it answers is what is connected to.
    """

    def __init__(self, *, allow_http: bool = False, allow_private: bool = False, lookup: Lookup = look_up) -> None:
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._allow_private = allow_private
        self._lookup = lookup
        self._free = asyncio.Semaphore(MAX_LOOKUPS_AT_ONCE)

    def parse(self, text: str) -> httpx.URL:
        """The URL, read by the parser that the connection is made with. Raises BlockedUrl."""
        if re.search(r"[\s\\\x00-\x1f\x7f]", text):
            raise BlockedUrl("it has blanks, backslashes or control characters")
        try:
            url = httpx.URL(text)
            host = url.raw_host.decode("ascii")
        except (httpx.InvalidURL, ValueError) as error:
            raise BlockedUrl("it is not a URL") from error
        if url.scheme not in self._schemes:
            raise BlockedUrl(f"it must begin with {' or '.join(f'{scheme}://' for scheme in self._schemes)}")
        if url.userinfo or re.match(r"[^/?#]*//[^/?#]*@", text):
            raise BlockedUrl("it must not carry a name or password")
        if url.port not in (None, 80, 443) and not 1024 <= url.port <= 65_535:
            raise BlockedUrl("its port must be 80, 443 or above 1023")
        if not _is_address(host):
            last = host.rstrip(".").rpartition(".")[2]
            if not _NAME.fullmatch(host) or _NUMBER.fullmatch(last):
                raise BlockedUrl("its host is neither a name nor a plain IP address")
        return url

    async def addresses(self, url: httpx.URL) -> list[str]:
        """The addresses of the host, each of them checked: one that may not be reached spoils the others.

        Raises BlockedUrl, or UnresolvedName after at most `LOOKUP_SECONDS`.
        """
        host, port = self.parse(str(url)).raw_host.decode("ascii"), url.port or 443
        found = [host] if _is_address(host) else await self._find(host, port)
        if not all(may_reach(address, allow_private=self._allow_private) for address in found):
            raise BlockedUrl("it leads to an address that must not be reached")
        return found[:MAX_ADDRESSES]

    async def _find(self, name: str, port: int) -> list[str]:
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await self._in_thread(name, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            raise UnresolvedName("its name has no address") from error
        if not found:
            raise UnresolvedName("its name has no address")
        return found

    async def _in_thread(self, name: str, port: int) -> list[str]:
        """Look up in a thread of its own: one that hangs holds back neither the API nor the end of the process."""
        loop = asyncio.get_running_loop()
        await self._free.acquire()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def tell(found: list[str], error: Exception | None) -> None:
            self._free.release()
            if not answer.done():
                answer.set_exception(error) if error else answer.set_result(found)

        def run() -> None:
            found: list[str] = []
            problem: Exception | None = None
            try:
                found = self._lookup(name, port)
            except Exception as error:
                problem = error
            with contextlib.suppress(RuntimeError):  # the loop is closed by now
                loop.call_soon_threadsafe(tell, found, problem)

        threading.Thread(target=run, name="outbound-lookup", daemon=True).start()
        return await answer


class PinnedTransport(httpx.AsyncBaseTransport):
    """Sends each request to a checked address of its host; name, Host header and certificate stay the host's.

    It keeps no connection: one that was made for a host must not serve another that has the same address.
    """

    def __init__(self, guard: Guard, inner: httpx.AsyncBaseTransport) -> None:
        self._guard = guard
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it. Raises BlockedUrl, UnresolvedName, or httpx's errors of the last address tried."""
        addresses = await self._guard.addresses(request.url)
        for address in addresses[:-1]:
            with contextlib.suppress(httpx.ConnectError):
                return await self._inner.handle_async_request(_pinned(request, address))
        return await self._inner.handle_async_request(_pinned(request, addresses[-1]))

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()


def open_client(guard: Guard, tls: ssl.SSLContext, timeout_seconds: float) -> httpx.AsyncClient:
    """A client for one request: cookies and connections of one host are no business of the next.

    It follows no redirect and uses no proxy. timeout_seconds: for each wait, not for the whole.
    """
    inner = httpx.AsyncHTTPTransport(verify=tls, trust_env=False)
    return httpx.AsyncClient(
        transport=PinnedTransport(guard, inner), trust_env=False, follow_redirects=False, timeout=timeout_seconds
    )


def _pinned(request: httpx.Request, address: str) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,  # Host among them
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # a zone names an interface of this machine
