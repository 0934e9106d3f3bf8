"""The shell around every request: id, cap on the body, security headers, log line, metric, last catch."""

import re
import secrets
import time
from collections.abc import Mapping

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs import JobError
from service.metrics import ServiceMetrics
from service.problems import problem_response

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_QUIET_ROUTES = ("/livez", "/readyz", "/metrics")  # asked every few seconds, of no interest in a log

SECURITY_HEADERS = {
    # The pages are self-contained: nothing is loaded from, sent to or framed by another origin.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


_RAW_HEADERS = _raw(SECURITY_HEADERS)


class Shell:
    """ASGI middleware. max_body_bytes: a longer body ends in body-too-large while it streams in, unparsed."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, metrics: ServiceMetrics) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (other ASGI scopes pass through)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given_id = declared = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given_id = value
            elif name == b"content-length":
                declared = value
        request_id = given_id.decode() if _REQUEST_ID.fullmatch(given_id) else secrets.token_hex(8)
        scope["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 0

        async def send_dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = message.get("headers", ())
                present = {name for name, _ in own}
                message["headers"] = [
                    *own,
                    (b"x-request-id", request_id.encode()),
                    *_raw(scope.get("answer_headers", {})),  # of a route, for its refusals too
                    *(header for header in _RAW_HEADERS if header[0] not in present),
                ]
            await send(message)

        try:
            if declared.isdigit() and int(declared) > self._max_body_bytes:
                response = problem_response(Request(scope), self._too_large(), {"Connection": "close"})
                await response(scope, receive, send_dressed)
            else:
                await self._app(scope, self._capped(receive), send_dressed)
        except Exception:
            # The last catch: whatever it was, the caller gets a problem without our insides in it.
            structlog.get_logger().exception("unexpected_error", path=scope["path"])
            if status:
                raise  # half an answer is out already; the server must cut it
            error = JobError("internal-error", "The request id finds it in the server's log.")
            await problem_response(Request(scope), error)(scope, receive, send_dressed)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _capped(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def receive_capped() -> Message:
            nonlocal num_bytes
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                if num_bytes > self._max_body_bytes:
                    raise self._too_large()
            return message

        return receive_capped

    def _too_large(self) -> JobError:
        return JobError("body-too-large", f"At most {self._max_body_bytes} bytes are accepted.")

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern, never the path: ids would make a metric of their own each.
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(scope["method"], route, status).inc()
        self._metrics.request_seconds.labels(scope["method"], route).observe(seconds)
        if route not in _QUIET_ROUTES:
            structlog.get_logger().info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * seconds, 1),
                # Bound here: what a route binds in its thread does not come back to this one.
                **scope.get("path_params", {}),
            )
