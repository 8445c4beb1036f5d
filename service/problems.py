"""Errors as RFC 9457 problem documents. The only place where an exception becomes an answer.

It knows nothing of routes; what may go wrong is named in `service/core/errors.py`.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from service.core.errors import (
    URN,
    DependencyUnavailable,
    FieldError,
    InvalidField,
    ServiceError,
    Stopping,
)
from service.core.storage import StorageError

MEDIA_TYPE = "application/problem+json"
AWAY_SECONDS = 5
"""What `Retry-After` says while Redis or the storage is away."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class FieldProblem(BaseModel):
    """One field of the request that is wrong."""

    field: str = Field(examples=["steps"])
    message: str = Field(examples=["Input should be less than or equal to 100"])


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="A stable URN of the kind of problem.", examples=[URN + "gone"])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What is wrong, with the field and the probable cause.")
    instance: str = Field(description="The id of the request, as in `X-Request-Id`.")
    errors: list[FieldProblem] | None = Field(
        default=None, description="Every field that is wrong, where fields are."
    )


def respond(error: ServiceError, request_id: str) -> Response:
    """The answer for an error of ours, with `Retry-After` where it is known."""
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, Stopping):
        headers["Connection"] = "close"
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    problem = Problem(
        type=error.type,
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=request_id,
        errors=[FieldProblem(field=one.field, message=one.message) for one in error.errors] or None,
    )
    return _answer(problem, headers)


def respond_internal(request_id: str) -> Response:
    """The answer for a fault of ours: it says nothing of the cause, which stands in the log."""
    return respond(
        ServiceError("The request failed on our side; quote the request id."), request_id
    )


def respond_stopping(request_id: str) -> Response:
    """The answer for a request that was not done with when the process had to end."""
    return respond(
        Stopping(
            "The service had to stop before it was done with this request; what was begun may "
            "have been done. Repeat it, and a POST with its Idempotency-Key",
            retry_after_seconds=AWAY_SECONDS,
        ),
        request_id,
    )


def install(app: FastAPI) -> None:
    """Let `app` answer every known exception with a problem document."""

    async def on_service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return respond(error, request.state.request_id)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        problem = Problem(
            type=URN + status.phrase.lower().replace(" ", "-"),
            title=status.phrase,
            status=status,
            detail=_ROUTING.get(status, status.description or status.phrase),
            instance=request.state.request_id,
        )
        return _answer(problem, error.headers or {})

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fields = [FieldError(str(cause["loc"][-1]), str(cause["msg"])) for cause in error.errors()]
        names = ", ".join(field.field for field in fields)
        return respond(
            InvalidField(f"Out of range or malformed: {names}", errors=fields),
            request.state.request_id,
        )

    async def on_away(request: Request, error: Exception) -> Response:
        log.warning("a dependency is away", cause=type(error).__name__, exc_info=error)
        name = "The job store" if isinstance(error, RedisError) else "The object storage"
        return respond(
            DependencyUnavailable(
                f"{name} does not answer; {_changed(request)}", retry_after_seconds=AWAY_SECONDS
            ),
            request.state.request_id,
        )

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(RedisError, on_away)
    app.add_exception_handler(StorageError, on_away)


def _changed(request: Request) -> str:
    """What a request has done so far, in the words that its route left."""
    return str(getattr(request.state, "changed", "nothing was changed"))


_ROUTING = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path is not served with this method",
}


def _answer(problem: Problem, headers: Mapping[str, str]) -> Response:
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=dict(headers),
    )
