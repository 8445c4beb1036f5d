"""Errors as RFC 9457 problem documents: the only place where an exception becomes a response.

`Refusal` is the HTTP server's own response, to what never becomes a request of the application.
"""

import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

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
    reason,
)
from service.core.redis_server import explain, is_full, is_read_only
from service.core.storage import StorageError

MEDIA_TYPE = "application/problem+json"
UNAVAILABLE_RETRY_SECONDS = 5
"""`Retry-After` while Redis or the storage does not respond."""

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


Renderer = Callable[["Problem"], Response]
"""Makes a response of a problem in the form that other clients read."""


def respond(error: ServiceError, request_id: str, render: Renderer | None = None) -> Response:
    """The response for an error, with `Retry-After` where it is known."""
    headers = dict(error.headers)
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
    return _answer(problem, headers, render)


def respond_internal(request_id: str) -> Response:
    """The response for an unexpected exception, whose text is in the log only."""
    return respond(ServiceError(), request_id)


def respond_stopping(request_id: str) -> Response:
    """The response for a request that was not finished when the process had to end."""
    return respond(
        Stopping(
            "The service shut down before this request was finished; it may have had an effect. "
            "Repeat it, and a POST with its Idempotency-Key",
            retry_after_seconds=UNAVAILABLE_RETRY_SECONDS,
        ),
        request_id,
    )


def install(app: FastAPI, renderers: Mapping[str, Renderer]) -> None:
    """Make `app` respond to every known exception with a problem document.

    `renderers` has those of paths whose clients read another form, by the start of the path.
    """

    def renderer(request: Request) -> Renderer | None:
        path = request.url.path
        return next((one for start, one in renderers.items() if path.startswith(start)), None)

    async def on_service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return respond(error, request.state.request_id, renderer(request))

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
        return _answer(problem, error.headers or {}, renderer(request))

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fields = [FieldError(str(cause["loc"][-1]), reason(cause)) for cause in error.errors()]
        return respond(InvalidField.of(*fields), request.state.request_id, renderer(request))

    async def on_unavailable(request: Request, error: Exception) -> Response:
        failure = _unavailable(error, "nothing was changed")
        return respond(failure, request.state.request_id, renderer(request))

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(RedisError, on_unavailable)
    app.add_exception_handler(StorageError, on_unavailable)


@contextmanager
def outcome_if_unavailable(outcome: str) -> Iterator[None]:
    """Let the response say what has been done so far, where a dependency fails in the context."""
    try:
        yield
    except (RedisError, StorageError) as error:
        raise _unavailable(error, outcome) from error


def _unavailable(error: Exception, outcome: str) -> DependencyUnavailable:
    full = is_full(error)
    if full or is_read_only(error):
        refusal = "is full" if full else "is a read-only replica"
        log.warning("dependency unavailable", dependency="Redis", cause=explain(error))
        return DependencyUnavailable(
            f"Redis {refusal}; {outcome}", retry_after_seconds=UNAVAILABLE_RETRY_SECONDS
        )
    cause = explain(error) if isinstance(error, RedisError) else str(error)
    log.warning("dependency unavailable", cause=cause, exc_info=error)
    return DependencyUnavailable(
        dependency="Redis" if isinstance(error, RedisError) else "The object storage",
        outcome=outcome,
        retry_after_seconds=UNAVAILABLE_RETRY_SECONDS,
    )


_ROUTING = {
    HTTPStatus.NOT_FOUND: "There is no resource at this path",
    HTTPStatus.METHOD_NOT_ALLOWED: "This method is not supported at this path",
}


def _answer(
    problem: Problem, headers: Mapping[str, str], render: Renderer | None = None
) -> Response:
    if render is not None:
        response = render(problem)
        response.headers.update(headers)
        return response
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=dict(headers),
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """The response to what is not, or no longer, a request."""

    status: HTTPStatus
    detail: str

    def render(self) -> bytes:
        """The response with a problem document; the connection ends after it."""
        instance = f"urn:uuid:{uuid.uuid4()}"
        document = Problem(
            type=URN + self.status.phrase.lower().replace(" ", "-"),
            title=self.status.phrase,
            status=self.status,
            detail=self.detail,
            instance=instance,
        )
        body = document.model_dump_json(exclude_none=True).encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {MEDIA_TYPE}",
            f"Content-Length: {len(body)}",
            f"X-Request-Id: {instance}",
            "Connection: close",
        ]
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            lines.append("Retry-After: 5")
        return "\r\n".join([*lines, "", ""]).encode() + body


class RefusedError(Exception):
    """Raised to end the connection with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


MALFORMED: Final = Refusal(HTTPStatus.BAD_REQUEST, "The request is not well-formed HTTP/1.1")
WRONG_HOST: Final = Refusal(
    HTTPStatus.BAD_REQUEST, "The request must have exactly one well-formed Host header"
)
HEAD_TOO_LARGE: Final = Refusal(
    HTTPStatus.BAD_REQUEST, "The request's headers are too long or too many"
)
FRAMING_TOO_LARGE: Final = Refusal(
    HTTPStatus.BAD_REQUEST, "The chunk extensions or trailers of the body are too long"
)
TOO_SLOW: Final = Refusal(
    HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive in time; send it again"
)
TOO_MANY_CONNECTIONS: Final = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are open; try again later"
)
