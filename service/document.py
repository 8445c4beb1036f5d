"""The OpenAPI document of the whole API, made of its routes and of `service/contract.py`."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.contract import REFERENCE, form_schema
from service.fields import Fields
from service.problems import Problem
from service.views import JobPage, JobView

VERSION: Final = "1.0.0"
"""Of the HTTP contract."""

DESCRIPTION: Final = """Pictures made from a picture: IP-Adapter (arXiv 2308.06721) served.

Post an image prompt to `/generate`, perhaps with a text and a ControlNet map; ask `/jobs/{id}`
for its state, follow `/jobs/{id}/events`, or send `Prefer: wait=60` and be answered the picture."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of `app`, with the schemas that its routes only refer to."""
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
    return document
