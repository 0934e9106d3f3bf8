"""Somebody else's server: real HTTP on loopback that notes every connection and answers as it is told."""

import contextlib
import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from typing import Any


@dataclass
class Receiver:
    """answers: statuses for the next requests, then 204. hold_seconds: pause before an answer.

    drip_seconds: how long an answer takes, a byte every tenth of a second. body: what follows the headers of an answer.
    """

    port: int = 0
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    hold_seconds: float = 0.0
    drip_seconds: float = 0.0
    body: bytes = b""
    num_connections: int = 0
    num_at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: list[tuple[str, Message, bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens, with a query that no log may show."""
        return f"http://127.0.0.1:{self.port}/hook?key=hidden"

    @property
    def ids(self) -> list[str]:
        """The webhook-id of each request."""
        return [headers["webhook-id"] for _, headers, _ in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.receiver.requests.append((self.path, self.headers, body))
        with self.receiver.lock:
            self.receiver.num_at_once += 1
            self.receiver.most_at_once = max(self.receiver.most_at_once, self.receiver.num_at_once)
        time.sleep(self.receiver.hold_seconds)
        with self.receiver.lock:
            self.receiver.num_at_once -= 1
        status = self.receiver.answers.pop(0) if self.receiver.answers else 204
        with contextlib.suppress(OSError):  # who sent it may have lost patience
            for letter in ("HTTP/1.1 204 " + "a" * 999)[: int(self.receiver.drip_seconds * 10)]:
                self.wfile.write(letter.encode())
                time.sleep(0.1)
            self.send_response(status)
            for name, value in self.receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(self.receiver.body)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver, until the block ends."""
    receiver = Receiver()

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def get_request(self) -> Any:
            found = super().get_request()
            receiver.num_connections += 1
            return found

        def handle_error(self, *_: Any) -> None:
            """A handshake that fails is the test's business."""

    with Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"receiver": receiver})) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
