"""The OpenAPI document of the whole API, made of its routes and of `service/contract.py`."""

from functools import cache
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.contract import REFERENCE, SECURITY, form_schema, webhook
from service.jobs.views import JobPage, JobView
from service.problems import Problem
from service.routes import events, generate, health, jobs, models
from service.submission.fields import Fields

VERSION: Final = "1.0.0"
"""Of the HTTP contract."""

DESCRIPTION: Final = """Pictures made from a picture: IP-Adapter (arXiv 2308.06721) served.

Post an image prompt to `/generate`, perhaps with a text and a ControlNet map; ask `/jobs/{id}`
for its state, follow `/jobs/{id}/events`, or send `Prefer: wait=60` and be answered the picture."""


@cache
def describe() -> dict[str, Any]:
    """The document of all routes, with the schemas that they only refer to."""
    app = FastAPI(title="imageprompt")
    for part in (generate, jobs, events, models, health):
        app.include_router(part.router)
    document = get_openapi(
        title=app.title,
        version=VERSION,
        openapi_version="3.1.0",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        routes=app.routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Problem, JobView, JobPage, Fields):
        schema = model.model_json_schema(ref_template=REFERENCE, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        if model is not Fields:
            schemas[model.__name__] = schema
    schemas["GenerateForm"] = form_schema()
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["components"]["securitySchemes"] = SECURITY
    for path, operations in document["paths"].items():
        if path.startswith(("/generate", "/jobs")):
            for operation in operations.values():
                operation["security"] = [{}, *({name: []} for name in SECURITY)]
    document["webhooks"] = {"jobEnded": {"post": webhook()}}
    return document
