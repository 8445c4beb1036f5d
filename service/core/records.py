"""Requests as fields of a record, readable by releases that run side by side in an upgrade.

A request that uses nothing new is written in the shape of release 0.1.0, whose processes reject a
record with a field more. What that shape has no place for is in a hash field of its own.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from service.core.param_types import StoredUpload, read_version_1
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


class UnreadableRecord(Exception):
    """Raised when a record is damaged beyond what another release could have written."""


def write(request: GenerateRequest) -> dict[str, str]:
    """The fields of the hash."""
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


def read(fields: Mapping[str, str]) -> GenerateRequest:
    """The request of a record. Raises `pydantic.ValidationError` where this release cannot."""
    return _with_details(GenerateRequest.model_validate_json(fields.get(REQUEST, "")), fields)


def read_leniently(fields: Mapping[str, str]) -> GenerateRequest:
    """As `read`, and what this release cannot read of it as it stands there, or `None`.

    For showing a job and for ending it, not for running it. Raises `UnreadableRecord`.
    """
    with suppress(ValidationError):
        return read(fields)
    try:
        content = json.loads(fields.get(REQUEST, ""))
    except ValueError:
        raise UnreadableRecord from None
    if not isinstance(content, dict):
        raise UnreadableRecord
    with suppress(AttributeError, KeyError, TypeError, ValueError):
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
        details = json.loads(fields.get(DETAILS, "{}"))
        maps = _UPLOADS.validate_python(details["control_image"])
    except (KeyError, TypeError, ValueError):
        return request
    return request.model_copy(update={"control_image": maps})
