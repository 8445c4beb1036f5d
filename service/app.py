"""Assembles the application. Connections are opened in the lifespan, nothing at import."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum, auto
from functools import lru_cache
from typing import TypedDict

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from service import problems
from service.browser_access import CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS
from service.core.metrics import ApiMetrics
from service.core.settings import Settings
from service.dependencies import Services, open_services
from service.middleware import GracefulShutdown, HeadMiddleware, RequestMiddleware
from service.openapi import describe
from service.periodic import StorageSweep, repeat
from service.public_url import ProxyMiddleware
from service.routes import (
    events,
    generate,
    health,
    huggingface,
    jobs,
    models,
    openai,
    pages,
    replicate,
    replicate_files,
)
from service.webhooks.delivery import Delivery, Sender

ROUTES = (generate, jobs, events, models, openai, huggingface, replicate, replicate_files)
"""What clients are served beside polls, which are looked up first."""
WEBHOOK_SECONDS = 1.0
"""Interval of the deliveries from the outbox."""
DEADLINE_SECONDS = 1.0
"""Interval of the checks for overdue jobs."""


class LifespanState(TypedDict):
    """What the lifespan adds to the state of every request."""

    services: Services


class Side(Enum):
    """Which paths an application serves."""

    ALL = auto()
    PUBLIC = auto()
    """Those for clients."""
    ADMIN = auto()
    """Docs, metrics and health."""


def create_app(
    settings: Settings,
    stopping: asyncio.Event | None = None,
    *,
    side: Side = Side.ALL,
    metrics: ApiMetrics | None = None,
) -> FastAPI:
    """The application; set `stopping` to end its open streams before it is shut down.

    Its lifespan raises `ConfigurationError` where settings or `models.yaml` are wrong.
    """
    counted = metrics or ApiMetrics()
    stopping = stopping or asyncio.Event()
    shutdown = GracefulShutdown(stopping, settings.grace_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[LifespanState]:
        async with AsyncExitStack() as stack:
            services = await stack.enter_async_context(open_services(settings, counted, stopping))
            watching = asyncio.create_task(shutdown.watch())
            stack.callback(watching.cancel)
            if side is not Side.ADMIN:
                await stack.enter_async_context(_background(services))
            yield {"services": services}

    app = FastAPI(
        title="imageprompt",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # One span a request; metrics and logs are the service's own.
        telemetry={"operation_spans": False, "metrics": False, "logs": False},
    )
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestMiddleware, metrics=counted, shutdown=shutdown)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )
    app.add_middleware(ProxyMiddleware, settings=settings)  # the outermost
    problems.install(app, {"/v1/images": openai.render_error})
    if side is not Side.ADMIN:
        for part in (jobs.polls, *(one.router for one in ROUTES)):
            _include(app, part, counted)
        if settings.page:
            _include(app, pages.page, counted)
    if side is not Side.PUBLIC:
        _include(app, health.router, counted)
        _include(app, pages.console, counted)
        _serve_document(app)
    return app


def _serve_document(app: FastAPI) -> None:
    """Serve the OpenAPI document. It is rendered once: that costs more than most requests."""
    document = describe()

    @lru_cache(maxsize=8)
    def rendered(prefix: str) -> bytes:
        servers = [{"url": prefix}, *document.get("servers", [])] if prefix else None
        return json.dumps(document | ({"servers": servers} if servers else {})).encode()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        # A prefix comes from the settings or from a trusted proxy, so there are few of them.
        prefix = request.scope.get("root_path", "")
        return Response(rendered(prefix), media_type="application/json")

    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's own hook


def _include(app: FastAPI, router: APIRouter, metrics: ApiMetrics) -> None:
    """Serve the routes, and expose the error counter of each at 0 before its first error."""
    app.router.routes.extend(router.routes)  # an included router would be searched twice a request
    for route in router.routes:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                metrics.requests.labels(route.path, method, "5xx")


@asynccontextmanager
async def _background(services: Services) -> AsyncIterator[None]:
    """Deliver webhooks, expire overdue jobs and sweep the storage while the application runs."""
    settings = services.settings
    delivery = Delivery(
        services.redis,
        Sender(settings.webhook_networks),
        services.metrics,
        services.signed_urls,
        anonymous_secret=settings.webhook_secret,
        payloads={replicate.PAYLOAD: replicate.webhook_payload(services.catalog)},
    )
    sweep = StorageSweep(
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
        asyncio.create_task(
            repeat(services.queue.expire_overdue, every_seconds=DEADLINE_SECONDS, name="deadlines")
        ),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await delivery.close()
