"""The OpenAPI document; `python -m service.openapi` prints it as YAML.

Derived from the routes, the parameters and the errors. The checked-in `openapi/openapi.yaml` must
equal it; a test compares them.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.routing import BaseRoute

from service.core import errors
from service.core.errors import ServiceError
from service.core.job import Status
from service.core.params import GenerateRequest
from service.core.schema import (
    Declaration,
    Files,
    example_input,
    is_list,
    marked,
    parameters,
    sent_model,
)
from service.jobs.views import JobPage, JobView
from service.problems import MEDIA_TYPE, Problem

VERSION: Final = "1.0.0"
"""Of the HTTP contract."""
DESCRIPTION: Final = """Pictures from pictures: IP-Adapter (arXiv 2308.06721) as a service.

Send an image prompt to `/generate`, with or without a text and a ControlNet map. Then poll
`/jobs/{id}` or follow `/jobs/{id}/events`; or send `Prefer: wait=60` to receive the picture."""

Responses = dict[int | str, dict[str, Any]]
REFERENCE: Final = "#/components/schemas/{model}"
EXAMPLE_REQUEST_ID: Final = "urn:uuid:1b4e28ba-2fa1-41d2-883f-0016d3cca427"
SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""How a key is sent. On loopback, and while no key is configured, none is needed."""

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


def form_schema(declaration: Declaration) -> dict[str, Any]:
    """JSON schema of the multipart form: every upload and every text field."""
    file = {"type": "string", "format": "binary"}
    properties = _properties(declaration, file=file, strict=False)
    for name, field in parameters(declaration).items():
        described = properties[name] = _without_null(properties[name])
        if is_list(field):  # comma-separated on the wire
            items = described.pop("items")
            described |= {"type": "string"}
            described.pop("maxItems", None)
            if items.get("type") == "number":
                described["pattern"] = r"^\d+(\.\d+)?(,\d+(\.\d+)?)*$"
            examples = described.pop("examples", [])
            described["examples"] = [",".join(map(str, one)) for one in examples]
    return _object(declaration, properties)


def json_schema(declaration: Declaration) -> dict[str, Any]:
    """JSON schema of the JSON body: the same fields; uploads are `data:` URIs."""
    file = {"type": "string", "format": "uri", "pattern": "^data:[^,]*;base64,"}
    properties = _properties(declaration, file=file, strict=True)
    for name, field in parameters(declaration).items():
        described = properties[name]
        texts = [{"type": "string", "description": "Comma-separated."}] if is_list(field) else []
        described["anyOf"] = [*_choices(described), *texts, {"type": "null"}]
    return _object(declaration, properties)


def _properties(
    declaration: Declaration, *, file: dict[str, Any], strict: bool
) -> dict[str, dict[str, Any]]:
    """Every field, uploads first."""
    model = sent_model(declaration, strict=strict)
    properties: dict[str, Any] = {}
    for name, limit in marked(declaration, Files).items():
        several = {
            "type": "array",
            "items": file,
            "minItems": limit.at_least,
            "maxItems": limit.at_most,
        }
        described = dict(several if limit.at_most > 1 else file)
        described["description"] = declaration.model_fields[name].description
        properties[name] = described
    schema = model.model_json_schema(ref_template=REFERENCE)
    return properties | {name: dict(field) for name, field in schema["properties"].items()}


def _object(declaration: Declaration, properties: dict[str, Any]) -> dict[str, Any]:
    files = marked(declaration, Files)
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, limit in files.items() if limit.at_least],
        "additionalProperties": False,
    }


def _choices(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the types out of a field's schema, all but `null`."""
    kept = ("description", "examples", "default", "title")
    if described.get("default") is None:
        described.pop("default", None)
    if "anyOf" in described:
        choices = described.pop("anyOf")
    else:
        choices = [{key: described.pop(key) for key in list(described) if key not in kept}]
    return [one for one in choices if one.get("type") != "null"]


def _without_null(described: dict[str, Any]) -> dict[str, Any]:
    """A field without its `null`, which a form cannot send."""
    [choice] = _choices(described)
    return described | choice


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
                "encoding": {
                    name: {"contentType": "image/png, image/jpeg, image/webp"} for name in files
                },
                "example": {name: ["(file)"] for name in required} | values,
            },
            "application/json": {
                "schema": {"$ref": REFERENCE.format(model="GenerateJson")},
                "example": {name: ["data:image/png;base64,iVBORw0KGgo="] for name in required}
                | values,
            },
        },
    }


def webhook() -> dict[str, Any]:
    """The request that `webhook_url` receives when a job has ended."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    ends = [f"job.{status.value}" for status in Status if status.is_terminal]
    return {
        "operationId": "job_ended",
        "description": "Signed according to Standard Webhooks, with the secret of the API key. Any "
        "2xx response confirms it, 410 stops it; after any other it is retried for some sixteen "
        "hours.",
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
                            "type": {"enum": ends},
                            "timestamp": {"type": "string", "format": "date-time"},
                            "data": {"$ref": REFERENCE.format(model=JobView.__name__)},
                        },
                    }
                }
            }
        },
        "responses": {
            "2XX": {"description": "Received."},
            "410": {"description": "No further webhooks."},
        },
    }


def describe(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document of these routes, with the schemas that they refer to."""
    document = get_openapi(
        title="imageprompt",
        version=VERSION,
        openapi_version="3.1.0",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        routes=routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Problem, JobView, JobPage):
        schema = model.model_json_schema(ref_template=REFERENCE, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    sent = sent_model(GenerateRequest).model_json_schema(ref_template=REFERENCE)
    schemas.update(sent.get("$defs", {}))
    schemas["GenerateForm"] = form_schema(GenerateRequest)
    schemas["GenerateJson"] = json_schema(GenerateRequest)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["components"]["securitySchemes"] = SECURITY
    for path, operations in document["paths"].items():
        if path.startswith(("/generate", "/jobs")):
            for operation in operations.values():
                operation["security"] = [{}, *({name: []} for name in SECURITY)]
    document["webhooks"] = {"jobEnded": {"post": webhook()}}
    return document


def render(document: dict[str, Any]) -> str:
    """A document as YAML."""
    return yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)


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


if __name__ == "__main__":
    from service.app import describe_all

    sys.stdout.write(render(describe_all()))
