"""Every way a request or a job can go wrong. Knows nothing of HTTP frameworks.

An exception carries its HTTP status, its stable problem type (RFC 9457) and its title;
the one handler in `service/problems.py` renders it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

URN = "urn:imageprompt:error:"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that is wrong and why."""

    field: str
    message: str


class ServiceError(Exception):
    """Base of all errors that a client may see.

    `detail` names the field and the probable cause and never carries a path, a stack or the
    text of a foreign exception. `retry_after_seconds` becomes the `Retry-After` header.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_seconds = retry_after_seconds

    @property
    def type(self) -> str:
        """The stable URN of this kind of problem."""
        return URN + self.code


class MalformedBody(ServiceError):
    """Raised when the body is not multipart/form-data or cannot be parsed as such."""

    status = 400
    code = "malformed-body"
    title = "Malformed body"


class InvalidImage(ServiceError):
    """Raised when an upload is no readable still picture: truncated, animated, too many pixels."""

    status = 400
    code = "invalid-image"
    title = "Invalid image"


class Unauthorized(ServiceError):
    """Raised when a request carries no API key or one that is not known."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"


class Forbidden(ServiceError):
    """Raised when an API key is known but lacks the right for what it asks."""

    status = 403
    code = "forbidden"
    title = "Forbidden"


class NotFound(ServiceError):
    """Raised when a job or picture does not exist for this caller."""

    status = 404
    code = "not-found"
    title = "Not found"


class IdempotencyInProgress(ServiceError):
    """Raised when the first request with this Idempotency-Key is still being taken in."""

    status = 409
    code = "idempotency-in-progress"
    title = "Request still in progress"


class Gone(ServiceError):
    """Raised when a job's record or pictures have expired."""

    status = 410
    code = "gone"
    title = "Expired"


class TooLarge(ServiceError):
    """Raised when a body or one of its files passes its size limit while it streams in."""

    status = 413
    code = "too-large"
    title = "Too large"


class UnsupportedMedia(ServiceError):
    """Raised when an upload is a readable file of a kind that is not served."""

    status = 415
    code = "unsupported-media-type"
    title = "Unsupported media type"


class InvalidField(ServiceError):
    """Raised when a field is out of range or stands in a wrong combination."""

    status = 422
    code = "invalid-field"
    title = "Invalid field"


class IdempotencyMismatch(ServiceError):
    """Raised when an Idempotency-Key comes again with another body."""

    status = 422
    code = "idempotency-mismatch"
    title = "Idempotency key reused"


class RateLimited(ServiceError):
    """Raised when the caller's own rate or concurrency limit has been exceeded."""

    status = 429
    code = "rate-limited"
    title = "Too many requests"


class QueueFull(ServiceError):
    """Raised when the queue holds as many jobs as it may."""

    status = 503
    code = "queue-full"
    title = "Queue full"


class Stopping(ServiceError):
    """Raised when the process is told to stop before a request has come in whole."""

    status = 503
    code = "stopping"
    title = "About to stop"


class Busy(ServiceError):
    """Raised when the bodies of other requests fill all room that there is for them."""

    status = 503
    code = "busy"
    title = "Too many uploads"


class DependencyUnavailable(ServiceError):
    """Raised when Redis, the object storage or the workers cannot be reached."""

    status = 503
    code = "dependency-unavailable"
    title = "Temporarily unavailable"


class JobFailed(Exception):
    """Base of all errors that end one job and leave the worker alive.

    They go into the job's `error` as `{type, title, detail}`; retryable ones are run again
    until the attempt cap.
    """

    code: ClassVar[str] = "job-failed"
    title: ClassVar[str] = "The job failed"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def type(self) -> str:
        """The stable URN of this kind of failure."""
        return URN + self.code


class OutOfMemory(JobFailed):
    """Raised when a picture does not fit into the GPU's memory even alone and in tiles."""

    code = "out-of-memory"
    title = "Out of memory"


class NotFinite(JobFailed):
    """Raised when a row's latents turn into NaN or infinity."""

    code = "not-finite"
    title = "Numerical failure"


class TookTooLong(JobFailed):
    """Raised when a job computes for longer than IMAGEPROMPT_JOB_TIMEOUT_SECONDS."""

    code = "took-too-long"
    title = "Took too long"


class InputLost(JobFailed):
    """Raised when an upload of the job can no longer be read from storage."""

    code = "input-lost"
    title = "Input lost"


class UnservableRequest(JobFailed):
    """Raised when the model at hand cannot do what a job asks; trying again would not help."""

    code = "unservable-request"
    title = "The model cannot do this"


class StorageFailed(JobFailed):
    """Raised when results could not be written after all retries."""

    code = "storage-failed"
    title = "Result could not be stored"
    retryable = True


class EngineFault(JobFailed):
    """Raised when the engine fails in a way that has no better name; the log has the cause."""

    code = "engine-fault"
    title = "Internal failure"
    retryable = True


class ConfigurationError(Exception):
    """Raised when settings, `models.yaml` or model files do not fit together at start-up."""
