"""A job's record in Redis, and the names of its events.

Only the named transitions in `service/core/transitions.py` change a job.
"""

import json
from contextlib import suppress
from enum import StrEnum
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from service.core import records
from service.core.params import GenerateRequest


class Status(StrEnum):
    """Where a job stands. The last four are final and never change."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has come to its end."""
        return self not in (Status.QUEUED, Status.PROCESSING)


class EventName(StrEnum):
    """Names of the server-sent events of a job."""

    STATUS = "status"
    PROGRESS = "progress"
    PREVIEW = "preview"
    DONE = "done"


class _StoredModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class StoredImage(_StoredModel):
    """One picture of a job in object storage. Width and height in pixels."""

    key: str
    content_type: str
    width: int
    height: int
    seed: int | None = None
    """Of a finished picture; a control map has none."""
    sha256: str
    size_bytes: int | None = None
    """Of the file; release 0.1.0 did not store it."""


class JobError(_StoredModel):
    """Why a job failed, in the words of RFC 9457."""

    type: str
    title: str
    detail: str


class JobWarning(_StoredModel):
    """Something that was done otherwise than the client may have expected."""

    code: str
    """Stable, for programs; docs/api.md lists them."""
    message: str


class JobMetrics(_StoredModel):
    """Where the time of a job went, in seconds, and what it shared."""

    queue_seconds: float = 0.0
    encode_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    upload_seconds: float = 0.0
    total_seconds: float = 0.0
    max_batch: int = 0
    image_embedding_cache: str | None = None
    """`hit` when no image of the job had to be encoded, else `miss`."""


class Job(_StoredModel):
    """A job's whole record. Times are seconds since the Unix epoch."""

    id: str
    owner: str
    status: Status
    request: GenerateRequest
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    """When record and pictures are gone (410 from then on); set when the job ends."""
    deadline_at: float | None = None
    """A job that has not started by then expires."""
    step: int = 0
    attempt: int = 0
    worker: str | None = None
    traceparent: str | None = None
    images: tuple[StoredImage, ...] = ()
    error: JobError | None = None
    maps: tuple[StoredImage, ...] = ()
    """Control maps that were made of pictures, in the order of the request."""
    warnings: tuple[JobWarning, ...] = ()
    metrics: JobMetrics = JobMetrics()

    def to_hash(self) -> dict[str, str]:
        """The fields of the Redis hash; absent ones are left out."""
        own = {
            name: encode_field(name, value)
            for name in type(self).model_fields
            if name != records.REQUEST and (value := getattr(self, name)) is not None
        }
        return own | records.write(self.request)

    @classmethod
    def from_hash(cls, fields: dict[str, str]) -> "Job":
        """The record behind the fields of a Redis hash.

        Raises `pydantic.ValidationError` where this release cannot read it.
        """
        values: dict[str, Any] = {
            name: _JSON_FIELDS[name].validate_json(text) if name in _JSON_FIELDS else text
            for name, text in fields.items()
            if name in cls.model_fields and name != records.REQUEST
        }
        return cls.model_validate(values | {records.REQUEST: records.read(fields)})

    @classmethod
    def read(cls, fields: dict[str, str]) -> "Job":
        """As `from_hash`, for showing or ending a job of another release: see `read_leniently`.

        Raises `records.UnreadableRecord` for a damaged one.
        """
        with suppress(ValidationError):
            return cls.from_hash(fields)
        request = records.read_leniently(fields)
        values: dict[str, Any] = {}
        for name, text in fields.items():
            if name in cls.model_fields and name != records.REQUEST:
                with suppress(ValidationError):
                    values[name] = _adapter(name).validate_python(_parsed(name, text))
        missing = {"id", "owner", "status", "created_at"} - set(values)
        if missing:
            raise records.UnreadableRecord
        return cls.model_construct(**values, request=request)


_JSON_FIELDS: dict[str, TypeAdapter[Any]] = {
    "images": TypeAdapter(tuple[StoredImage, ...]),
    "error": TypeAdapter(JobError),
    "maps": TypeAdapter(tuple[StoredImage, ...]),
    "warnings": TypeAdapter(tuple[JobWarning, ...]),
    "metrics": TypeAdapter(JobMetrics),
}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    kind: Any = Job.model_fields[name].annotation
    return TypeAdapter(kind)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text) if name in _JSON_FIELDS else text
    except ValueError:
        return None


def encode_field(name: str, value: object) -> str:
    """The text of one hash field, as `Job.from_hash` reads it."""
    adapter = _JSON_FIELDS.get(name)
    return adapter.dump_json(value).decode() if adapter else str(value)
