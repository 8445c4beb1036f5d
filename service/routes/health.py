"""Whether the service lives, whether it can work, and its figures."""

import asyncio
import time

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from service.contract import success
from service.core import redis_keys
from service.dependencies import Services, Use
from service.probe import PATIENCE_SECONDS

router = APIRouter()

SCRAPE_PATIENCE_SECONDS = 3
"""The same for the figures that are read from Redis; Prometheus waits 5 s for the whole page."""


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
    workers, storage = await asyncio.gather(_workers(services), services.storage_probe.answers())
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
    """Figures for Prometheus. Without Redis, only those that the process itself counts."""
    figures = services.metrics
    read, storage = await asyncio.gather(_read_redis(services), _storage_answers(services))
    figures.storage_ready.set(storage)
    return Response(generate_latest(figures.registry) + read, media_type=CONTENT_TYPE_LATEST)


async def _read_redis(services: Services) -> bytes:
    """The gauges that every replica reads from Redis.

    None where it does not answer: 0, or an old value, would tell KEDA that there is no job.
    """
    figures = services.metrics
    try:
        async with asyncio.timeout(SCRAPE_PATIENCE_SECONDS):
            snapshot = await services.estimates.snapshot()
            outbox = await services.redis.zcard(redis_keys.OUTBOX)
            memory = await services.redis.info("memory")
    except (RedisError, TimeoutError):
        return b""
    oldest = snapshot.oldest_created_at
    figures.webhook_outbox.set(outbox)
    figures.queue_depth.set(snapshot.waiting)
    figures.running_jobs.set(snapshot.running)
    figures.workers_ready.set(snapshot.workers_ready)
    figures.oldest_seconds.set(0 if oldest is None else time.time() - oldest)
    figures.redis_memory.set(memory["used_memory"])
    figures.redis_memory_limit.set(memory["maxmemory"])
    return generate_latest(figures.redis_registry)


async def _storage_answers(services: Services) -> bool:
    """Whether the storage answers in time for the page."""
    try:
        async with asyncio.timeout(SCRAPE_PATIENCE_SECONDS):
            return await services.storage_probe.answers()
    except TimeoutError:
        return False


async def _workers(services: Services) -> int | None:
    """Warm workers; `None` where Redis does not answer."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return sum(presence.ready for presence in await services.estimates.presences())
    except (RedisError, TimeoutError):
        return None
