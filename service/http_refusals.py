"""Responses of the HTTP server itself, to what never becomes a request of the application."""

import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from service import problems
from service.core.errors import URN


@dataclass(frozen=True, slots=True)
class Refusal:
    """The response to what is not, or no longer, a request."""

    status: HTTPStatus
    detail: str

    def render(self) -> bytes:
        """The response with a problem document; the connection ends after it."""
        instance = f"urn:uuid:{uuid.uuid4()}"
        document = problems.Problem(
            type=URN + self.status.phrase.lower().replace(" ", "-"),
            title=self.status.phrase,
            status=self.status,
            detail=self.detail,
            instance=instance,
        )
        body = document.model_dump_json(exclude_none=True).encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {problems.MEDIA_TYPE}",
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
