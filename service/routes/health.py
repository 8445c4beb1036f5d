"""Liveness, readiness and metrics."""

import asyncio

import redis.asyncio as aioredis
from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from service.core import redis_keys
from service.core.metrics import ApiMetrics
from service.core.redis_server import readable
from service.dependencies import (
    UseEstimates,
    UseMetrics,
    UseRedis,
    UseRedisMonitor,
    UseStorageProbe,
)
from service.jobs.eta import Estimates
from service.periodic import PROBE_TIMEOUT_SECONDS, RedisMonitor, StorageProbe
from service.responses import success

router = APIRouter()

SCRAPE_TIMEOUT_SECONDS = 3
"""For the metrics that are read from Redis; Prometheus waits 5 s for the whole page."""


class Alive(BaseModel):
    """The process responds."""

    status: str = Field(examples=["ok"])


class Readiness(BaseModel):
    """What a job needs, and whether it is available."""

    ready: bool
    redis: bool
    storage: bool
    workers: int = Field(description="Warm workers.")


@router.get("/healthz/live", operation_id="live")
async def live() -> Alive:
    """Whether the process responds."""
    return Alive(status="ok")


@router.get(
    "/healthz/ready",
    operation_id="ready",
    responses={
        200: success("A job submitted now would be processed.", Readiness),
        503: success("Something that a job needs is unavailable.", Readiness)
        | {"headers": {"Retry-After": {"schema": {"type": "integer"}}}},
    },
    response_model=Readiness,
)
async def ready(
    estimates: UseEstimates, storage_probe: UseStorageProbe, redis_monitor: UseRedisMonitor
) -> Response:
    """Whether Redis takes writes, and the storage and at least one warm worker respond."""
    workers, storage = await asyncio.gather(
        _workers(estimates, redis_monitor), storage_probe.answers()
    )
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
async def metrics(
    figures: UseMetrics,
    estimates: UseEstimates,
    redis: UseRedis,
    storage_probe: UseStorageProbe,
    redis_monitor: UseRedisMonitor,
) -> Response:
    """Metrics for Prometheus. Without Redis, only those of the process itself."""
    read, storage = await asyncio.gather(
        _read_redis(figures, estimates, redis, redis_monitor), _storage_answers(storage_probe)
    )
    figures.storage_ready.set(storage)
    return Response(figures.render() + read, media_type=CONTENT_TYPE_LATEST)


async def _read_redis(
    figures: ApiMetrics,
    estimates: Estimates,
    redis: "aioredis.Redis",
    redis_monitor: RedisMonitor,
) -> bytes:
    """The gauges that every replica reads from Redis.

    None where it does not respond: with 0 or an old value, KEDA would see an empty queue.
    """
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT_SECONDS):
            snapshot = await estimates.snapshot()
            async with redis.pipeline(transaction=False) as pipeline:
                pipeline.zcard(redis_keys.OUTBOX)
                pipeline.time()
                outbox, (seconds, _) = readable(await pipeline.execute(raise_on_error=False))
            info = await redis_monitor.info()
    except (RedisError, TimeoutError):
        return b""
    oldest = snapshot.oldest_created_at
    figures.webhook_outbox.set(outbox or 0)
    figures.queue_depth.set(snapshot.waiting)
    figures.running_jobs.set(snapshot.running)
    figures.workers_ready.set(snapshot.workers_ready)
    figures.oldest_seconds.set(0 if oldest is None else max(0.0, seconds - oldest))
    figures.redis_memory.set(info.used_bytes)
    figures.redis_memory_limit.set(info.max_bytes)
    figures.redis_evicts.set(info.evicts)
    figures.redis_evicted_keys.set(info.evicted_keys)
    return generate_latest(figures.redis_registry)


async def _storage_answers(storage_probe: StorageProbe) -> bool:
    """Whether the storage responds in time for the page."""
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT_SECONDS):
            return await storage_probe.answers()
    except TimeoutError:
        return False


async def _workers(estimates: Estimates, redis_monitor: RedisMonitor) -> int | None:
    """Number of warm workers; `None` where Redis does not respond or takes no writes."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            info = await redis_monitor.info()
            if info.refuses_writes or not info.supported:
                return None
            return sum(presence.ready for presence in await estimates.presences())
    except (RedisError, TimeoutError):
        return None
