"""The short way for status polls, which are most of what is asked: to their endpoint without the framework's layers."""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import answer_error
from service.routes import jobs

_PREFIX = jobs.JOB_PATH.removesuffix("{job_id}")
_ROUTE = next(route for route in jobs.router.routes if getattr(route, "endpoint", None) is jobs.read_job)


class PollShortcut:
    """ASGI middleware that answers `GET /v1/jobs/<id>` itself, and hands on all else.

    The layers of FastAPI take longer than the answer. The endpoint is the one that the router would find, errors
    become the same problems, and log and metrics see the same route.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        job_id = _polled(scope)
        if job_id is None:
            await self._app(scope, receive, send)
            return
        scope["route"], scope["path_params"] = _ROUTE, {"job_id": job_id}
        request = Request(scope)
        try:
            answer = await jobs.read_job(request, job_id)
        except Exception as error:
            answer = await answer_error(request, error)
        await answer(scope, receive, send)


def _polled(scope: Scope) -> str | None:
    """The id in the path of a poll; None of any other request. Below a prefix (`root_path`) the router finds it."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope.get("root_path"):
        return None
    path: str = scope["path"]
    job_id = path[len(_PREFIX) :] if path.startswith(_PREFIX) else ""
    return job_id if job_id and "/" not in job_id else None
