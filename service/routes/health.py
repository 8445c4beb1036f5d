"""Whether the service lives, whether it can work, and its figures."""

import asyncio
import time

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from service.contract import success
from service.core import keys
from service.core.storage import StorageError
from service.state import Services, Use

router = APIRouter()

PATIENCE_SECONDS = 8
"""A dependency that has not answered by then counts as away."""


class Alive(BaseModel):
    """The process answers."""

    status: str = Field(examples=["ok"])


class Readiness(BaseModel):
    """What a job needs, and whether it is there."""

    ready: bool
    redis: bool
    storage: bool
    workers: int = Field(description="Warm workers.")


@router.get("/healthz/live", operation_id="live")
async def live() -> Alive:
    """Whether the process answers."""
    return Alive(status="ok")


@router.get(
    "/healthz/ready",
    operation_id="ready",
    responses={
        200: success("A job sent now would be worked on.", Readiness),
        503: success("Something that a job needs is away.", Readiness)
        | {"headers": {"Retry-After": {"schema": {"type": "integer"}}}},
    },
    response_model=Readiness,
)
async def ready(services: Use) -> Response:
    """Whether Redis, the storage and at least one warm worker answer."""
    workers, storage = await asyncio.gather(_workers(services), _storage_answers(services))
    state = Readiness(
        ready=bool(workers) and storage,
        redis=workers is not None,
        storage=storage,
        workers=workers or 0,
    )
    return Response(
        state.model_dump_json(),
        status_code=200 if state.ready else 503,
        media_type="application/json",
        headers={} if state.ready else {"Retry-After": "5"},
    )


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
async def metrics(services: Use) -> Response:
    """Figures for Prometheus."""
    try:
        snapshot = await services.estimates.snapshot()
        services.metrics.webhook_outbox.set(await services.redis.zcard(keys.OUTBOX))
    except RedisError:
        snapshot = None  # what the process itself counts is worth reading all the same
    if snapshot is not None:
        oldest = snapshot.oldest_created_at
        services.metrics.queue_depth.set(snapshot.waiting)
        services.metrics.running_jobs.set(snapshot.running)
        services.metrics.workers_ready.set(snapshot.workers_ready)
        services.metrics.oldest_seconds.set(0 if oldest is None else time.time() - oldest)
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _workers(services: Services) -> int | None:
    """Warm workers; `None` where Redis does not answer."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return sum(presence.ready for presence in await services.estimates.presences())
    except (RedisError, TimeoutError):
        return None


async def _storage_answers(services: Services) -> bool:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await to_thread.run_sync(services.storage.check, abandon_on_cancel=True)
    except (StorageError, TimeoutError):
        return False
    return True
