"""Puts the application together. Connections open in the lifespan, nothing at import."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum, auto
from typing import TypedDict

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from service import problems
from service.core.metrics import ApiMetrics
from service.core.settings import Settings
from service.deadlines import Deadlines
from service.dependencies import Services, open_services
from service.document import describe
from service.grace import Grace
from service.middleware import RequestContext
from service.periodic import repeat
from service.routes import events, generate, health, jobs, models, pages
from service.sweep import Sweep
from service.webhooks.delivery import Delivery
from service.webhooks.sender import Sender

WEBHOOK_SECONDS = 1.0
"""How often the outbox is looked into."""
DEADLINE_SECONDS = 1.0
"""How often overdue jobs are looked for."""


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
    stopping = stopping or asyncio.Event()
    grace = Grace(stopping, settings.grace_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            services = await stack.enter_async_context(open_services(settings, counted, stopping))
            watching = asyncio.create_task(grace.watch())
            stack.callback(watching.cancel)
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
    app.add_middleware(RequestContext, metrics=counted, grace=grace)
    problems.install(app)
    if side is not Side.ADMIN:
        for part in (generate, jobs, events, models):
            _include(app, part.router, counted)
        if settings.page:
            _include(app, pages.page, counted)
    if side is not Side.PUBLIC:
        _include(app, health.router, counted)
        _include(app, pages.console, counted)
        document = describe()
        app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's own hook
    return app


def _include(app: FastAPI, router: APIRouter, metrics: ApiMetrics) -> None:
    """Serve the routes, and expose 0 server errors of each before its first one."""
    app.include_router(router)
    for route in router.routes:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                metrics.requests.labels(route.path, method, "5xx")


@asynccontextmanager
async def _background(services: Services) -> AsyncIterator[None]:
    """Deliver webhooks, end overdue jobs and sweep the storage while the application runs."""
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
    deadlines = Deadlines(services.queue, services.transitions)
    tasks = [
        asyncio.create_task(repeat(delivery.step, every_seconds=WEBHOOK_SECONDS, name="webhooks")),
        asyncio.create_task(repeat(sweep.step, every_seconds=settings.sweep_seconds, name="sweep")),
        asyncio.create_task(
            repeat(deadlines.step, every_seconds=DEADLINE_SECONDS, name="deadlines")
        ),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await delivery.close()
