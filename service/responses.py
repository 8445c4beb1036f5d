"""What the OpenAPI document says about the requests and responses of a route."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from service.core import errors
from service.core.errors import ServiceError
from service.core.params import GenerateRequest
from service.core.schema import Files, example_input, marked
from service.problems import MEDIA_TYPE, Problem

Responses = dict[int | str, dict[str, Any]]
REFERENCE: Final = "#/components/schemas/{model}"
EXAMPLE_REQUEST_ID: Final = "urn:uuid:1b4e28ba-2fa1-41d2-883f-0016d3cca427"

_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
}
_RATE_LIMIT: Final = {
    "RateLimit": {
        "description": "What is left of each of the key's quotas (IETF draft 10).",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": 'The quotas: `"requests"` per minute, concurrent `"jobs"`.',
        "schema": {"type": "string"},
    },
}
_HEADERS: Final = {429: _RETRY_AFTER | _RATE_LIMIT, 503: _RETRY_AFTER}


def failures(*statuses: int) -> Responses:
    """The problem documents of these statuses and of 500, with an example of each kind."""
    return {status: _failure(status) for status in (*statuses, 500)}


def _failure(status: int) -> dict[str, Any]:
    kinds = [kind for kind in ServiceError.__subclasses__() if kind.status == status]
    kinds = kinds or [ServiceError]
    described: dict[str, Any] = {
        "description": " ".join(_sentence(kind) for kind in kinds),
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": REFERENCE.format(model=Problem.__name__)},
                "examples": {
                    kind.code: {"summary": kind.title, "value": _example(kind)} for kind in kinds
                },
            }
        },
    }
    if status in _HEADERS:
        described["headers"] = _HEADERS[status]
    return described


def _sentence(kind: type[ServiceError]) -> str:
    if kind is ServiceError:
        return "A server error; the response does not reveal its cause."
    text = " ".join((kind.__doc__ or "").split("\n\n")[0].split()).removeprefix("Raised ")
    return text[:1].upper() + text[1:]


def _example(kind: type[ServiceError]) -> dict[str, Any]:
    detail = kind.message.format(**kind.example)
    example: dict[str, Any] = {
        "type": errors.URN + kind.code,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": EXAMPLE_REQUEST_ID,
    }
    if kind in (errors.InvalidField, errors.InvalidImage, errors.UnsupportedMedia):
        field = detail.split(":")[0].split(" ")[0]
        example["errors"] = [{"field": field, "message": detail.removeprefix(field).lstrip(": ")}]
    return example


def success(
    description: str,
    model: type[BaseModel] | None = None,
    *,
    example: object = None,
    headers: Mapping[str, str] | None = None,
    binary: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A successful response: JSON of `model`, or bytes of these media types, or both."""
    content: dict[str, Any] = {}
    if model is not None:
        content["application/json"] = {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}
        if example is not None:
            content["application/json"]["example"] = example
    for kind in binary:
        content[kind] = {"schema": {"type": "string", "format": "binary"}}
    described: dict[str, Any] = {"description": description}
    if content:
        described["content"] = content
    if headers:
        described["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}}
            for name, meaning in headers.items()
        }
    return described


def header(name: str, description: str, example: str) -> dict[str, Any]:
    """An optional request header."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


IMAGE_TYPES: Final = "image/png, image/jpeg, image/webp, image/avif, image/heic"
"""Media types of uploads."""


def generate_body() -> dict[str, Any]:
    """`requestBody` of POST /generate."""
    files = marked(GenerateRequest, Files)
    required = [name for name, limit in files.items() if limit.at_least]
    values = {"prompt": "a watercolour", "seed": 7}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"$ref": REFERENCE.format(model="GenerateForm")},
                "encoding": {name: {"contentType": IMAGE_TYPES} for name in files},
                "example": {name: ["(file)"] for name in required} | values,
            },
            "application/json": {
                "schema": {"$ref": REFERENCE.format(model="GenerateJson")},
                "example": {name: ["data:image/png;base64,iVBORw0KGgo="] for name in required}
                | values,
            },
        },
    }


_EXAMPLE_JOB_ID: Final = "6f0f1e1c-6a5e-4f0b-9a53-0d8b7a2c1e4d"
_EXAMPLE_URL: Final = f"https://images.example.org/jobs/{_EXAMPLE_JOB_ID}"

JOB_EXAMPLE: Final[dict[str, Any]] = {
    "id": _EXAMPLE_JOB_ID,
    "status": "succeeded",
    "created_at": "2026-01-01T12:00:00Z",
    "started_at": "2026-01-01T12:00:00.400Z",
    "completed_at": "2026-01-01T12:00:03.100Z",
    "expires_at": "2026-01-02T12:00:03.100Z",
    "queue_position": None,
    "eta_seconds": None,
    "progress": {"step": 30, "total": 30},
    "input": example_input(GenerateRequest),
    "images": [
        {
            "url": f"{_EXAMPLE_URL}/images/0",
            "content_type": "image/png",
            "width": 1024,
            "height": 1024,
            "seed": 7,
            "sha256": "cd" * 32,
        }
    ],
    "error": None,
    "maps": [],
    "warnings": [],
    "metrics": {
        "queue_seconds": 0.4,
        "encode_seconds": 0.0,
        "denoise_seconds": 2.3,
        "decode_seconds": 0.2,
        "upload_seconds": 0.1,
        "total_seconds": 3.1,
        "max_batch": 8,
        "image_embedding_cache": "hit",
    },
    "urls": {
        "self": _EXAMPLE_URL,
        "cancel": f"{_EXAMPLE_URL}/cancel",
        "events": f"{_EXAMPLE_URL}/events",
    },
}
