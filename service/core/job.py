"""A job's record in Redis, and the names of its events.

Only the named transitions in `service/core/transitions.py` change a job. Records are readable by
releases that run side by side in an upgrade: a request that uses nothing new is written in the
shape of release 0.1.0, whose processes reject a record with a field more; what that shape has no
place for is in a hash field of its own.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from service.core.errors import Gone
from service.core.param_types import ObjectKey, Sha256, StoredUpload, read_version_1
from service.core.params import GenerateRequest

REQUEST: Final = "request"
DETAILS: Final = "request_details"
"""Of the ControlNet map: its size and the hash of its pixels, which 0.1.0 did not store."""

_V1_SCALARS: Final = (
    *("model", "adapter", "prompt", "negative_prompt", "ip_scale", "crop", "width", "height"),
    *("steps", "guidance_scale", "guidance_end", "scheduler", "seed", "num_images"),
    *("output_format", "deterministic", "webhook_url"),
)
_V1_NESTED: Final = (
    *("image", "image_weights", "control_image"),
    *("control_type", "control_scale", "control_start", "control_end"),
)
_V1_SCHEDULERS: Final = ("ddim", "euler", "dpmpp_2m", "unipc", "lcm")
_UPLOADS: Final = TypeAdapter(tuple[StoredUpload, ...])
_LONGEST_NUMBER: Final = 18
"""Digits of a whole number in a damaged request that is still shown."""

LAST_MOMENT: Final = 253_402_000_000
Moment = Annotated[float, Field(ge=0, le=LAST_MOMENT)]
"""Seconds since the Unix epoch, in years of four digits."""
Count = Annotated[int, Field(ge=0, lt=2**31)]


class UnreadableRecord(Gone):
    """Raised when a record is damaged beyond what another release could have written."""

    message = "The job's record is damaged and cannot be shown; cancel and delete still work"


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
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class StoredImage(_StoredModel):
    """One picture of a job in object storage. Width and height in pixels."""

    key: ObjectKey
    content_type: Annotated[str, Field(pattern=r"^[a-z]+/[a-z0-9.+-]+$")]
    width: Count
    height: Count
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    """Of a finished picture; a control map has none."""
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
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
    created_at: Moment
    started_at: Moment | None = None
    completed_at: Moment | None = None
    expires_at: Moment | None = None
    """When record and pictures are gone (410 from then on); set when the job ends."""
    deadline_at: Moment | None = None
    """A job that has not started by then expires."""
    step: Count = 0
    attempt: Count = 0
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
            if name != REQUEST and (value := getattr(self, name)) is not None
        }
        return own | write_request(self.request)

    @classmethod
    def from_hash(cls, fields: dict[str, str]) -> "Job":
        """The record behind the fields of a Redis hash.

        Raises `pydantic.ValidationError` where this release cannot read it.
        """
        values: dict[str, Any] = {
            name: _JSON_FIELDS[name].validate_json(text) if name in _JSON_FIELDS else text
            for name, text in fields.items()
            if name in cls.model_fields and name != REQUEST
        }
        return cls.model_validate(values | {REQUEST: read_request(fields)})

    @classmethod
    def read(cls, fields: dict[str, str]) -> "Job":
        """As `from_hash`, leniently: for showing or ending a job of another release.

        A state that this release does not know is shown as `processing`. Raises `UnreadableRecord`
        for a damaged record.
        """
        with suppress(ValidationError):
            return cls.from_hash(fields)
        request = read_request_leniently(fields)
        values: dict[str, Any] = {"status": Status.PROCESSING, "created_at": 0.0}
        for name, text in fields.items():
            if name in cls.model_fields and name != REQUEST:
                with suppress(ValidationError):
                    values[name] = _adapter(name).validate_python(_parsed(name, text))
        if not {"id", "owner"} <= set(values):
            raise UnreadableRecord
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
    field = Job.model_fields[name]
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind)


def _parsed(name: str, text: str) -> Any:
    try:
        return _load(text) if name in _JSON_FIELDS else text
    except ValueError:
        return None


def _load(text: str) -> Any:
    """JSON that may be damaged, without what cannot be sent to a client as JSON again.

    Numbers without an end become `None`, lone surrogates question marks. Raises `ValueError`.
    """
    try:
        parsed = json.loads(
            text, parse_int=_whole, parse_float=_finite, parse_constant=lambda _: None
        )
        return json.loads(json.dumps(parsed, ensure_ascii=False).encode(errors="replace"))
    except RecursionError:
        raise ValueError from None


def _whole(text: str) -> int | None:
    return int(text) if len(text) <= _LONGEST_NUMBER else None


def _finite(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


def read_number(text: object, most: float = LAST_MOMENT) -> float | None:
    """A number of a record from 0 to `most`; `None` where there is none."""
    try:
        number = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return number if 0 <= number <= most else None


def encode_field(name: str, value: object) -> str:
    """The text of one hash field, as `Job.from_hash` reads it."""
    adapter = _JSON_FIELDS.get(name)
    return adapter.dump_json(value).decode() if adapter else str(value)


def write_request(request: GenerateRequest) -> dict[str, str]:
    """The fields of the hash that hold a request."""
    content = request.model_dump(mode="json")
    if not _is_version_1(request, content):
        return {REQUEST: json.dumps(content)}
    record = {name: content[name] for name in _V1_SCALARS}
    record["images"] = [
        one | {"weight": weight}
        for one, weight in zip(content["image"], content["image_weights"], strict=True)
    ]
    record["control"] = None
    fields = {}
    for control in request.controls:
        stored = control.model_dump(mode="json")
        record["control"] = {
            part: stored[part] for part in ("key", "sha256", "type", "scale", "start", "end")
        }
        fields[DETAILS] = json.dumps({"control_image": content["control_image"]})
    return {REQUEST: json.dumps(record), **fields}


def _is_version_1(request: GenerateRequest, content: dict[str, Any]) -> bool:
    known = {*_V1_SCALARS, *_V1_NESTED}
    for name, field in type(request).model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name not in known and getattr(request, name) != default:
            return False
    return (
        bool(content["image"])
        and not isinstance(content["ip_scale"], list)
        and len(content["control_image"]) <= 1
        and content["scheduler"] in _V1_SCHEDULERS
    )


def read_request(fields: Mapping[str, str]) -> GenerateRequest:
    """The request of a record. Raises `pydantic.ValidationError` where this release cannot."""
    return _with_details(GenerateRequest.model_validate_json(fields.get(REQUEST, "")), fields)


def read_request_leniently(fields: Mapping[str, str]) -> GenerateRequest:
    """As `read_request`, and what this release cannot read of it as it stands there, or `None`.

    For showing a job and for ending it, not for running it. Raises `UnreadableRecord`.
    """
    with suppress(ValidationError):
        return read_request(fields)
    try:
        content = _load(fields.get(REQUEST, ""))
    except ValueError:
        raise UnreadableRecord from None
    if not isinstance(content, dict):
        raise UnreadableRecord
    with suppress(ValueError):
        content = read_version_1(content)
    values = {
        name: _value(content, name, field) for name, field in GenerateRequest.model_fields.items()
    }
    return _with_details(GenerateRequest.model_construct(**values), fields)


def _value(content: dict[str, Any], name: str, field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    if name in content:
        kind: Any = Annotated[field.annotation, *field.metadata]
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        with suppress(ValidationError):
            return adapter.validate_python(content[name])
        if isinstance(content[name], str | int | float | bool):
            return content[name]
    if default is not PydanticUndefined:
        return default
    return () if name == "image" else None


def _with_details(request: GenerateRequest, fields: Mapping[str, str]) -> GenerateRequest:
    try:
        details = _load(fields.get(DETAILS, "{}"))
        maps = _UPLOADS.validate_python(details["control_image"])
    except (KeyError, TypeError, ValueError):
        return request
    return request.model_copy(update={"control_image": maps})
