"""What the client raises."""

from collections.abc import Mapping
from typing import Any

from imageprompt.types import Job


class ClientError(Exception):
    """Base of all errors of this package; the message is for a person."""


class Unavailable(ClientError):
    """Raised when the service cannot be reached, or is temporarily unavailable (503)."""


class ApiError(ClientError):
    """Raised when the service refuses a request (RFC 9457 problem document).

    `status` is the HTTP status, `type` the stable URN of the kind, `errors` the fields that are
    wrong (`{"field", "message"}`), `request_id` what to quote to the operator.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", "HTTP error"))
        self.detail = str(problem.get("detail", ""))
        self.errors: list[Mapping[str, str]] = list(problem.get("errors") or [])
        self.request_id = str(problem.get("instance", ""))
        super().__init__(f"{self.title} ({status}): {self.detail}".removesuffix(": "))


class JobFailed(ClientError):
    """Raised by `run` when the job ended without pictures; `job` is its last state."""

    def __init__(self, job: Job) -> None:
        self.job = job
        cause = job.error or {"title": job.status, "detail": ""}
        super().__init__(f"job {job.id} {job.status}: {cause['title']}. {cause['detail']}".rstrip())
