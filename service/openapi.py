"""The OpenAPI document; `python -m service.openapi` prints it as YAML.

Derived from the routes, the parameters and the errors. The checked-in `openapi/openapi.yaml` must
equal it; a test compares them.
"""

import json
import sys
from copy import deepcopy
from functools import cache
from typing import Any, Final

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.core.job import Status
from service.core.params import GenerateRequest
from service.core.schema import (
    Declaration,
    Files,
    OneOrMore,
    is_list,
    marked,
    marker,
    parameters,
    sent_model,
)
from service.jobs.views import JobPage, JobView
from service.problems import Problem
from service.responses import JOB_EXAMPLE, REFERENCE
from service.routes import events, generate, health, jobs, models

VERSION: Final = "1.0.0"
"""Of the HTTP contract."""
DESCRIPTION: Final = """Pictures from pictures: IP-Adapter (arXiv 2308.06721) as a service.

Send an image prompt to `/generate`, with or without a text and a ControlNet map. Then poll
`/jobs/{id}` or follow `/jobs/{id}/events`; or send `Prefer: wait=60` to receive the picture."""

SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""How a key is sent. On loopback, and while no key is configured, none is needed."""


TAGS: Final = {
    "jobs": "Submit requests; poll, follow, cancel and delete their jobs; fetch pictures.",
    "service": "What is served, and how the service is.",
    "webhooks": "What the service sends.",
}


FILE_URI: Final = "^(data:[^,]*;base64,|https://)"
"""What a file may be in JSON; https URLs where the operator allows them."""


def form_schema(declaration: Declaration) -> dict[str, Any]:
    """JSON schema of the multipart form: every upload and every text field."""
    file = {"type": "string", "format": "binary"}
    properties = _properties(declaration, file=file, strict=False)
    for name, field in parameters(declaration).items():
        described = properties[name] = _without_null(properties[name])
        if is_list(field):  # comma-separated on the wire
            items = described.pop("items")
            for part in ("type", "minItems", "maxItems"):
                described.pop(part, None)
            text = {"type": "string"}
            if items.get("type") == "number":
                text["pattern"] = r"^\d+(\.\d+)?(,\d+(\.\d+)?)*$"
            is_one = marker(field, OneOrMore) is not None
            described |= {"anyOf": [items, text]} if is_one else text
            if "default" in described:
                described["default"] = ",".join(map(str, described["default"]))
            for number, example in enumerate(described.get("examples", ())):
                values = example if isinstance(example, list) else [example]
                described["examples"][number] = ",".join(map(str, values))
    return _object(declaration, properties)


def json_schema(declaration: Declaration) -> dict[str, Any]:
    """JSON schema of the JSON body: the same fields; uploads are URIs."""
    file = {"type": "string", "format": "uri", "pattern": FILE_URI}
    properties = _properties(declaration, file=file, strict=True)
    for name, field in parameters(declaration).items():
        described = properties[name]
        choices = _choices(described)
        if marker(field, OneOrMore) is not None:
            choices += [choices[0]["items"]]
        if is_list(field):
            choices += [{"type": "string", "description": "Comma-separated."}]
        described["anyOf"] = [*choices, {"type": "null"}]
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
        if strict and limit.at_most > 1:
            described = {"anyOf": [several, file]}
        described["description"] = declaration.model_fields[name].description
        properties[name] = described
    schema = model.model_json_schema(ref_template=REFERENCE)
    return {**properties, **deepcopy(schema["properties"])}


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


def webhook() -> dict[str, Any]:
    """The request that `webhook_url` receives when a job has ended."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    return {
        "operationId": "job_ended",
        "summary": "A job has ended",
        "tags": ["webhooks"],
        "security": [],
        "description": "Signed according to Standard Webhooks, with the secret of the API key. Any "
        "2xx response confirms it, 410 stops it; after any other it is retried for some sixteen "
        "hours.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "requestBody": {
            "content": {
                "application/json": {"schema": {"$ref": REFERENCE.format(model="JobEnded")}}
            }
        },
        "responses": {
            "2XX": {"description": "Received."},
            "410": {"description": "No further webhooks."},
        },
    }


def ended() -> dict[str, Any]:
    """The body of that request."""
    return {
        "title": "JobEnded",
        "type": "object",
        "required": ["type", "timestamp", "data"],
        "properties": {
            "type": {
                "type": "string",
                "enum": [f"job.{status.value}" for status in Status if status.is_terminal],
            },
            "timestamp": {"type": "string", "format": "date-time"},
            "data": {"$ref": REFERENCE.format(model=JobView.__name__)},
        },
    }


@cache
def describe() -> dict[str, Any]:
    """The document of all routes, with the schemas that they refer to."""
    app = FastAPI()
    routers = (
        generate.router,
        jobs.polls,
        jobs.router,
        events.router,
        models.router,
        health.router,
    )
    for router in routers:
        app.include_router(router)
    document = get_openapi(
        title="imageprompt",
        version=VERSION,
        openapi_version="3.1.0",
        description=DESCRIPTION,
        servers=[{"url": "/", "description": "Where this document comes from."}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        routes=app.routes,
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
    schemas["JobEnded"] = ended()
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["components"]["securitySchemes"] = SECURITY
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    for path, operations in document["paths"].items():
        is_private = path.startswith(("/generate", "/jobs"))
        for operation in operations.values():
            operation["tags"] = ["jobs" if is_private else "service"]
            keys: list[dict[str, list[str]]] = [{name: []} for name in SECURITY]
            operation["security"] = [{}, *keys] if is_private else []
            _complete_examples(operation)
    document["webhooks"] = {"jobEnded": {"post": webhook()}}
    return document


def _complete_examples(operation: dict[str, Any]) -> None:
    """Put the nulls back into examples of jobs, which FastAPI leaves out."""
    for response in operation["responses"].values():
        content = response.get("content", {}).get("application/json", {})
        if content.get("example", {}).get("id") == JOB_EXAMPLE["id"]:
            content["example"] = json.loads(json.dumps(JOB_EXAMPLE))


class _WithoutAliases(yaml.SafeDumper):
    """Writes what occurs twice twice: not every reader of OpenAPI follows YAML's aliases."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 (the base class's signature)
        return True


def render(document: dict[str, Any]) -> str:
    """A document as YAML."""
    text: str = yaml.dump(
        document, Dumper=_WithoutAliases, sort_keys=False, width=100, allow_unicode=True
    )
    return text


if __name__ == "__main__":
    sys.stdout.write(render(describe()))
