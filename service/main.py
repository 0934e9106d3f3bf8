"""Serving: binds the address, refuses to be open to the world by accident, and runs the app."""

import contextlib
import ctypes
import socket

import structlog
import uvicorn

from jobs import REDIS_AWAY, KeyStore, Settings, configure_logs, connect
from service.access import is_open_to_anonymous
from service.app import create_app

GRACE_SECONDS = 5
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 1 << 20  # of glibc's mallopt


def run(settings: Settings) -> None:
    """Serve the API until SIGINT or SIGTERM.

    Raises SystemExit with one clear line when the address is taken, or open to others without leave.
    """
    _give_memory_back()
    check_address(settings, KeyStore(connect(settings.redis_url)))
    listener = listen(settings.host, settings.port)
    configure_logs(settings.log_level)
    host, port = listener.getsockname()[:2]
    structlog.get_logger().info("listening", host=host, port=port)
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,  # service.shell writes one, with the request's id
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with listener:
        uvicorn.Server(config).run(sockets=[listener])


def _give_memory_back() -> None:
    """Have what a large upload took go back to the system with it: glibc would keep up to 64 MiB for the next."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def check_address(settings: Settings, api_keys: KeyStore) -> None:
    """Raise SystemExit when others could reach an API that has no keys to ask for."""
    if is_open_to_anonymous(settings):
        return
    try:
        if api_keys.is_configured():
            return
    except REDIS_AWAY:
        return  # service.access asks again for every request, and lets nobody in before Redis answers
    raise SystemExit(
        f"Refusing to listen on {settings.host}: no API keys are configured, so anyone who reaches it could "
        "use it. Make one with 'm3esr keys create NAME', set M3ESR_HOST=127.0.0.1, or set "
        "M3ESR_ALLOW_ANONYMOUS=true if that is what you want."
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises SystemExit naming the setting to change when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay only where the protocol is named: else each answer on a kept connection waits 40 ms,
    # its body for the acknowledgement of its headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Bound alone is not taken: without this a second server would find out only later.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise SystemExit(f"Cannot listen on {host}:{port}: {reason}. Set M3ESR_PORT to a free port.") from error
    return listener


if __name__ == "__main__":
    run(Settings())
