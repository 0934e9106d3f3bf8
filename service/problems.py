"""Errors as RFC 9457 problem details: one shape for every answer that is not a success."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from redis.exceptions import ResponseError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jobs import REDIS_AWAY, JobError

CONTENT_TYPE = "application/problem+json"

_SOURCES = ("query", "path", "header", "body")
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_CODES_BY_STATUS = {404: "not-found", 405: "method-not-allowed", 406: "not-acceptable"}


class Problem(BaseModel):
    """What went wrong (RFC 9457). `type` is stable, one per kind of failure: match on it, not on words."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    field: str | None = None


def problem_response(request: Request, error: JobError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that tells `error`."""
    problem = Problem(
        type=error.type,
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=request.url.path,
        request_id=request.scope.get("request_id", ""),
        field=error.field,
    )
    extra = {"Cache-Control": "no-store", **(headers or {})}
    if error.retry_after_seconds is not None:
        extra["Retry-After"] = str(error.retry_after_seconds)
    body = problem.model_dump(exclude_none=True)
    return JSONResponse(body, status_code=error.status, headers=extra, media_type=CONTENT_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these statuses, for the OpenAPI document."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": "A problem (RFC 9457)", "content": {CONTENT_TYPE: schema}}
        for status in (*statuses, 500, 503)
    }


def invalid_option(error: ValidationError | RequestValidationError) -> JobError:
    """The problem behind a failed validation, naming the first field at fault."""
    faults = error.errors()
    places = [".".join(str(part) for part in fault["loc"] if part not in _SOURCES) for fault in faults]
    words = [
        f"{place}: {_words(fault)}" if place else _words(fault) for place, fault in zip(places, faults, strict=True)
    ]
    return JobError("invalid-option", "; ".join(words) + ".", field=places[0] or None)


def _words(fault: Mapping[str, Any]) -> str:
    return cast(str, fault["msg"]).removeprefix("Value error, ").rstrip(".")


async def _on_job_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, JobError)
    # /readyz is asked every few seconds while the workers load: that is an answer, not a fault to log.
    if error.status >= 500 and error.code != "no-worker":
        structlog.get_logger().error("request_failed", code=error.code, detail=error.detail)
    return problem_response(request, error, {"WWW-Authenticate": "Bearer"} if error.status == 401 else None)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES_BY_STATUS.get(error.status_code, "bad-request")
    detail = {
        "not-found": f"Nothing is served at {request.url.path}.",
        "method-not-allowed": f"{request.method} is not answered at {request.url.path}.",
    }.get(code, str(error.detail))
    headers = dict(error.headers or {})
    if code == "method-not-allowed":
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return problem_response(request, JobError(code, detail), headers)


def _allowed_methods(request: Request) -> list[str]:
    # The router names those of the first route of this path alone, and a path has one route per method.
    routes, scope = request.app.routes, dict(request.scope)
    return [m for m in _METHODS if any(route.matches(scope | {"method": m})[0] is Match.FULL for route in routes)]


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem_response(request, invalid_option(error))


async def _on_redis_away(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ResponseError) and not str(error).startswith(("OOM", "READONLY")):
        raise error  # a command we got wrong is no outage
    structlog.get_logger().error("redis_unavailable", reason=str(error))
    away = JobError("redis-unavailable", "Try again in a few seconds.", retry_after_seconds=2)
    return problem_response(request, away)


_ANSWERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    JobError: _on_job_error,
    HTTPException: _on_http_error,
    RequestValidationError: _on_invalid_request,
    **dict.fromkeys((*REDIS_AWAY, ResponseError), _on_redis_away),
}


def install_problems(app: FastAPI) -> None:
    """Answer every error of `app` as a problem; what nothing here knows is left to service.shell."""
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """What `install_problems` has the app answer, for those who call an endpoint without it. Raises what it is not."""
    for kind in type(error).__mro__:
        if kind in _ANSWERS:
            return await _ANSWERS[kind](request, error)
    raise error
