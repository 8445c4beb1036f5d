"""What the OpenAPI document says beyond the types of the routes: the form, errors, headers.

It describes; it decides nothing. `service/openapi.py` puts the document together.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from service.core import errors
from service.core.errors import ServiceError
from service.core.job import Status
from service.jobs.views import JobView
from service.problems import MEDIA_TYPE, Problem
from service.submission.fields import CONTROL, IMAGE, MAX_IMAGES, Fields

Described = dict[int | str, dict[str, Any]]
REFERENCE: Final = "#/components/schemas/{model}"
EXAMPLE_REQUEST: Final = "urn:uuid:1b4e28ba-2fa1-41d2-883f-0016d3cca427"

KINDS: Final[Mapping[int, tuple[type[ServiceError], ...]]] = {
    400: (errors.MalformedBody, errors.InvalidImage),
    401: (errors.Unauthorized,),
    403: (errors.Forbidden,),
    404: (errors.NotFound,),
    409: (errors.IdempotencyInProgress,),
    410: (errors.Gone,),
    413: (errors.TooLarge,),
    415: (errors.UnsupportedMedia,),
    422: (errors.InvalidField, errors.IdempotencyMismatch),
    429: (errors.RateLimited,),
    503: (errors.QueueFull, errors.Busy, errors.DependencyUnavailable, errors.Stopping),
    500: (errors.ServiceError,),
}
"""Every error that a client may see, by its status."""

_DETAILS: Final[Mapping[type[ServiceError], str]] = {
    errors.MalformedBody: "The body must be multipart/form-data; see /docs",
    errors.InvalidImage: "image cannot be decoded; it is damaged or cut off",
    errors.Unauthorized: "This needs an API key: Authorization: Bearer KEY",
    errors.Forbidden: "This key may not do that",
    errors.NotFound: "There is no such job",
    errors.IdempotencyInProgress: "The first request with this key is still being taken in",
    errors.Gone: "The job's record and pictures have expired",
    errors.TooLarge: "image is larger than 20971520 bytes",
    errors.UnsupportedMedia: "image is GIF; PNG, JPEG and WebP are served",
    errors.InvalidField: "steps: Input should be less than or equal to 100",
    errors.IdempotencyMismatch: "This Idempotency-Key came before with another body",
    errors.RateLimited: "This key may send 60 requests a minute",
    errors.QueueFull: "1000 jobs are waiting, as many as may",
    errors.Busy: "Too many bodies are coming in at the moment",
    errors.DependencyUnavailable: "The job store does not answer; nothing was changed",
    errors.Stopping: "The service is about to stop and the body has not come in; send it again",
    errors.ServiceError: "The request failed on our side; quote the request id.",
}

_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
}
_RATE_LIMIT: Final = {
    "RateLimit": {
        "description": "What is left of each of the key's quotas (IETF draft 10).",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": 'The quotas: `"requests"` a minute, `"jobs"` at once.',
        "schema": {"type": "string"},
    },
}
_HEADERS: Final = {429: _RETRY_AFTER | _RATE_LIMIT, 503: _RETRY_AFTER}


def failures(*statuses: int) -> Described:
    """The problem documents of these statuses, with an example of each kind."""
    return {status: _failure(status) for status in (*statuses, 500)}


def _failure(status: int) -> dict[str, Any]:
    kinds = KINDS[status]
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
        return "A fault of ours; the answer says nothing of its cause."
    text = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return text.removeprefix("Raised ")[:1].upper() + text.removeprefix("Raised ")[1:]


def _example(kind: type[ServiceError]) -> dict[str, Any]:
    detail = _DETAILS[kind]
    example: dict[str, Any] = {
        "type": errors.URN + kind.code,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": EXAMPLE_REQUEST,
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
    """A good answer: JSON of `model`, or bytes of these media types, or both."""
    content: dict[str, Any] = {}
    if model is not None:
        content["application/json"] = {
            "schema": {"$ref": REFERENCE.format(model=model.__name__)},
        }
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


def form_schema() -> dict[str, Any]:
    """JSON schema of the multipart form: the files and every text field."""
    schema = Fields.model_json_schema(ref_template=REFERENCE)
    schema.pop("$defs", None)
    properties: dict[str, Any] = {
        IMAGE: {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": MAX_IMAGES,
            "description": "Image prompts: PNG, JPEG or WebP. Several are combined as one prompt.",
        },
        CONTROL: {
            "type": "string",
            "format": "binary",
            "description": "The ControlNet map; resized to the output size.",
        },
    }
    for name, described in schema["properties"].items():
        properties[name] = _plain(described)
    # On the wire it is one text; the array is what it means.
    properties["image_weights"] |= {"type": "string", "pattern": r"^\d+(\.\d+)?(,\d+(\.\d+)?)*$"}
    properties["image_weights"].pop("items", None)
    return {
        "type": "object",
        "properties": properties,
        "required": [IMAGE],
        "additionalProperties": False,
    }


def _plain(described: dict[str, Any]) -> dict[str, Any]:
    """A field without its `null`, which a form cannot send."""
    choices = [one for one in described.pop("anyOf", []) if one.get("type") != "null"]
    if described.get("default") is None:
        described.pop("default", None)
    return described | (choices[0] if choices else {})


def generate_body() -> dict[str, Any]:
    """`requestBody` of POST /generate."""
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"$ref": REFERENCE.format(model="GenerateForm")},
                "encoding": {
                    name: {"contentType": "image/png, image/jpeg, image/webp"}
                    for name in (IMAGE, CONTROL)
                },
                "example": {IMAGE: ["(file)"], "prompt": "a watercolour", "seed": 7},
            }
        },
    }


def header(name: str, description: str, example: str) -> dict[str, Any]:
    """A request header that is optional."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""How a key is sent. On loopback, and while no key is configured, none is needed."""


def webhook() -> dict[str, Any]:
    """What `webhook_url` is sent when a job has ended."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    return {
        "operationId": "job_ended",
        "description": "Signed as Standard Webhooks says, with the secret of the API key. Any 2xx "
        "answer ends it, 410 stops it; everything else is tried again for some sixteen hours.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["type", "timestamp", "data"],
                        "properties": {
                            "type": {
                                "enum": [
                                    f"job.{status.value}" for status in Status if status.is_terminal
                                ]
                            },
                            "timestamp": {"type": "string", "format": "date-time"},
                            "data": {"$ref": REFERENCE.format(model=JobView.__name__)},
                        },
                    }
                }
            }
        },
        "responses": {"2XX": {"description": "Received."}, "410": {"description": "No more."}},
    }
