"""Puts the application together. Connections open in the lifespan, nothing at import."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum, auto
from typing import TypedDict

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from service import docs_page, problems
from service.background import repeat
from service.context import RequestContext
from service.core.metrics import ApiMetrics
from service.core.settings import Settings
from service.document import describe
from service.routes import events, generate, health, jobs, models
from service.state import Services, open_services
from service.sweep import Sweep
from service.webhooks.delivery import Delivery
from service.webhooks.sender import Sender

WEBHOOK_SECONDS = 1.0
"""How often the outbox is looked into."""


class State(TypedDict):
    """What the lifespan hands to every request."""

    services: Services


class Side(Enum):
    """Which paths an application serves."""

    ALL = auto()
    PUBLIC = auto()
    """Those of clients alone."""
    ADMIN = auto()
    """Docs, metrics and health alone."""


def create_app(
    settings: Settings,
    stopping: asyncio.Event | None = None,
    *,
    side: Side = Side.ALL,
    metrics: ApiMetrics | None = None,
) -> FastAPI:
    """The application; set `stopping` to let its open streams end before it is shut down.

    Its lifespan raises `ConfigurationError` where settings or `models.yaml` are wrong.
    """
    counted = metrics or ApiMetrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            services = await stack.enter_async_context(
                open_services(settings, counted, stopping or asyncio.Event())
            )
            if side is not Side.ADMIN:
                await stack.enter_async_context(_background(services))
            yield {"services": services}

    app = FastAPI(
        title="imageprompt",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None if side is Side.PUBLIC else "/openapi.json",
        telemetry={"operation_spans": False},  # a trace has one span a request
    )
    app.add_middleware(RequestContext, metrics=counted)
    problems.install(app)
    if side is not Side.ADMIN:
        for part in (generate, jobs, events, models):
            app.include_router(part.router)
    if side is not Side.PUBLIC:
        app.include_router(health.router)
        _document(app)
    return app


def _document(app: FastAPI) -> None:
    """Serve the OpenAPI document of the whole contract, and a page of it."""
    document = describe()
    page = docs_page.render(document)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": docs_page.POLICY})

    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's own hook


@asynccontextmanager
async def _background(services: Services) -> AsyncIterator[None]:
    """Deliver webhooks and sweep the storage for as long as the application runs."""
    settings = services.settings
    delivery = Delivery(
        services.redis,
        Sender(settings.webhook_networks),
        services.metrics,
        anonymous_secret=settings.webhook_secret,
    )
    sweep = Sweep(
        services.redis,
        services.storage,
        every_seconds=settings.sweep_seconds,
        index_seconds=settings.queue_deadline_seconds
        + settings.job_retention_seconds
        + settings.tombstone_seconds,
    )
    tasks = [
        asyncio.create_task(repeat(delivery.step, every_seconds=WEBHOOK_SECONDS, name="webhooks")),
        asyncio.create_task(repeat(sweep.step, every_seconds=settings.sweep_seconds, name="sweep")),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await delivery.close()
