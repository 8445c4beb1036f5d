"""Puts the application together. Connections open in the lifespan, nothing at import."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from service import docs_page, problems
from service.context import RequestContext
from service.core.metrics import ApiMetrics
from service.core.settings import Settings
from service.document import describe
from service.routes import events, generate, health, jobs, models
from service.state import Services, open_services


class State(TypedDict):
    """What the lifespan hands to every request."""

    services: Services


def create_app(settings: Settings, stopping: asyncio.Event | None = None) -> FastAPI:
    """The application; set `stopping` to let its open streams end before it is shut down.

    Its lifespan raises `ConfigurationError` where settings or `models.yaml` are wrong.
    """
    metrics = ApiMetrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with open_services(settings, metrics, stopping or asyncio.Event()) as services:
            yield {"services": services}

    app = FastAPI(title="imageprompt", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(RequestContext, metrics=metrics)
    problems.install(app)
    for part in (generate, jobs, events, models, health):
        app.include_router(part.router)
    document = describe(app)
    page = docs_page.render(document)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": docs_page.POLICY})

    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's own hook
    return app
