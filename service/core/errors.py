"""Every way a request or a job can go wrong.

An exception carries its HTTP status, its stable problem type (RFC 9457), its title and its usual
message; the one handler in `service/problems.py` renders it, and OpenAPI shows it as an example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

URN = "urn:imageprompt:error:"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that is wrong and why."""

    field: str
    message: str


class ServiceError(Exception):
    """Base of all errors that a client may see.

    `detail` names the field and the probable cause and never carries a path, a stack or the
    text of a foreign exception. `retry_after_seconds` becomes the `Retry-After` header, `headers`
    are further headers of the answer.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    message: ClassVar[str] = "The request failed because of a server error; quote the request id"
    """The usual `detail`; a template where it has values."""
    example: ClassVar[Mapping[str, object]] = {}
    """Values of the template for the OpenAPI document."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
        **values: object,
    ) -> None:
        """`values` fill the template in where no `detail` is given."""
        self.detail = self.message.format(**values) if detail is None else detail
        super().__init__(self.detail)
        self.errors = tuple(errors)
        self.retry_after_seconds = retry_after_seconds
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """The stable URN of this kind of problem."""
        return URN + self.code


class MalformedBody(ServiceError):
    """Raised when the body is neither multipart/form-data nor JSON, or cannot be parsed as such."""

    status = 400
    code = "malformed-body"
    title = "Malformed body"
    message = "The body must be multipart/form-data or application/json; see /docs"


class InvalidImage(ServiceError):
    """Raised when an upload is not a readable still image: truncated, animated, too many pixels."""

    status = 400
    code = "invalid-image"
    title = "Invalid image"
    message = "image cannot be decoded; it is damaged or truncated"


class Unauthorized(ServiceError):
    """Raised when a request carries no API key or an unknown one."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"
    message = "An API key is required: Authorization: Bearer KEY"


class Forbidden(ServiceError):
    """Raised when an API key lacks the scope that a request needs."""

    status = 403
    code = "forbidden"
    title = "Forbidden"
    message = "This API key lacks the scope {scope!r}"
    example: ClassVar[Mapping[str, object]] = {"scope": "manage"}


class NotFound(ServiceError):
    """Raised when a job or picture does not exist for this caller."""

    status = 404
    code = "not-found"
    title = "Not found"
    message = "There is no such job"


class IdempotencyInProgress(ServiceError):
    """Raised when the first request with this Idempotency-Key has not been answered yet."""

    status = 409
    code = "idempotency-in-progress"
    title = "Request still in progress"
    message = "The first request with this Idempotency-Key is still being processed"


class Gone(ServiceError):
    """Raised when a job's record or pictures have expired."""

    status = 410
    code = "gone"
    title = "Expired"
    message = "The job's record and pictures have expired"


class TooLarge(ServiceError):
    """Raised when a body or one of its files exceeds its size limit while it is received."""

    status = 413
    code = "too-large"
    title = "Too large"
    message = "{what} is larger than {limit} bytes"
    example: ClassVar[Mapping[str, object]] = {"what": "image", "limit": 20 * 2**20}


class UnsupportedMedia(ServiceError):
    """Raised when an upload is a readable file of a type that is not supported."""

    status = 415
    code = "unsupported-media-type"
    title = "Unsupported media type"
    message = "image is GIF; PNG, JPEG, WebP, AVIF and HEIC are served"


class InvalidField(ServiceError):
    """Raised when a field is out of range or in a wrong combination."""

    status = 422
    code = "invalid-field"
    title = "Invalid field"
    message = "steps: Input should be less than or equal to 100"

    @classmethod
    def of(cls, *errors: FieldError) -> Self:
        """The error that names these fields."""
        detail = "; ".join(f"{error.field}: {error.message}" for error in errors)
        return cls(detail, errors=errors)


class IdempotencyMismatch(ServiceError):
    """Raised when an Idempotency-Key is used again with another body."""

    status = 422
    code = "idempotency-mismatch"
    title = "Idempotency key reused"
    message = "This Idempotency-Key was already used with another body"


class RateLimited(ServiceError):
    """Raised when the caller's own rate or concurrency limit has been exceeded."""

    status = 429
    code = "rate-limited"
    title = "Too many requests"
    message = "This API key is limited to {quota} requests per minute"
    example: ClassVar[Mapping[str, object]] = {"quota": 60}


class QueueFull(ServiceError):
    """Raised when the queue has reached its limit."""

    status = 503
    code = "queue-full"
    title = "Queue full"
    message = "The queue is full ({jobs} jobs)"
    example: ClassVar[Mapping[str, object]] = {"jobs": 1000}


class Busy(ServiceError):
    """Raised when the uploads in progress use all memory that is reserved for them."""

    status = 503
    code = "busy"
    title = "Too many uploads"
    message = "Too many uploads are in progress"


class DependencyUnavailable(ServiceError):
    """Raised when Redis, the object storage or the workers cannot be reached."""

    status = 503
    code = "dependency-unavailable"
    title = "Temporarily unavailable"
    message = "{dependency} does not respond; {outcome}"
    example: ClassVar[Mapping[str, object]] = {
        "dependency": "Redis",
        "outcome": "nothing was changed",
    }


class Stopping(ServiceError):
    """Raised when the process shuts down before a request has been received completely."""

    status = 503
    code = "stopping"
    title = "Shutting down"
    message = "The service is shutting down before the whole body has been received; send it again"


class NoPictures(ServiceError):
    """Raised when a request whose answer is pictures made a job that ended without any."""

    status = 502
    code = "no-pictures"
    title = "Job without pictures"
    message = "The job has no pictures"


class JobUnfinished(ServiceError):
    """Raised when a request whose answer is pictures made a job that takes too long."""

    status = 504
    code = "job-unfinished"
    title = "Job not finished"
    message = "The job goes on; ask for it"


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


def reason(cause: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says, without the name of the exception class before it."""
    return str(cause["msg"]).removeprefix("Value error, ")
