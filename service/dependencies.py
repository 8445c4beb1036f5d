"""What every route works with: the settings, the catalog and the open connections.

Built once in the lifespan; nothing here opens a connection before it is used.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import redis.asyncio as aioredis
from fastapi import Depends, Request
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue

from service.core.catalog import Catalog, load_catalog
from service.core.metrics import ApiMetrics
from service.core.queue import open_queue
from service.core.settings import Settings
from service.core.storage import Storage
from service.core.transitions import Transitions
from service.gate import Gate, anonymous_allowed
from service.jobs.eta import Estimates
from service.jobs.event_stream import Follower
from service.jobs.store import Records
from service.probe import StorageProbe
from service.rate_limits import Limits
from service.submission.idempotency import Idempotency
from service.submission.room import Bodies
from service.submission.uploads import Uploads

CONNECT_SECONDS = 2
ANSWER_SECONDS = 5
POLLING_CONNECTIONS = 64
BODIES_AT_ONCE = 10
"""As many as large as may be; 1,000 MiB of the 2 GiB that k8s/ gives to temporary files."""


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of the routes."""

    settings: Settings
    catalog: Catalog
    metrics: ApiMetrics
    redis: "aioredis.Redis"
    queue: Queue
    transitions: Transitions
    storage: Storage
    records: Records
    estimates: Estimates
    follower: Follower
    storage_probe: StorageProbe
    bodies: Bodies
    uploads: Uploads
    gate: Gate
    limits: Limits
    idempotency: Idempotency


@asynccontextmanager
async def open_services(
    settings: Settings, metrics: ApiMetrics, stopping: asyncio.Event
) -> AsyncIterator[Services]:
    """Put the collaborators together, and close their connections at the end.

    Raises `ConfigurationError` where settings or `models.yaml` are wrong.
    """
    url = settings.redis_url.get_secret_value()
    pool = aioredis.BlockingConnectionPool.from_url(
        url,
        decode_responses=True,
        max_connections=POLLING_CONNECTIONS,
        timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=AsyncRetry(NoBackoff(), 1),
        health_check_interval=15,
    )
    client = aioredis.Redis.from_pool(pool)
    # A transaction that may have happened must not be sent again, so this one never retries.
    writer = Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    follower = Follower(url, at_once=settings.max_event_streams, stopping=stopping)
    storage = Storage.from_settings(settings)
    catalog = load_catalog(settings.models)
    metrics.start_at_zero(catalog.models)
    uploads = Uploads(storage, max_pixels=settings.max_image_pixels)
    try:
        yield Services(
            settings=settings,
            catalog=catalog,
            metrics=metrics,
            redis=client,
            queue=open_queue(settings.queue, writer),
            transitions=Transitions(
                writer,
                retention_seconds=settings.job_retention_seconds,
                tombstone_seconds=settings.tombstone_seconds,
                max_attempts=settings.max_attempts,
                on_end=metrics.ends.count,
            ),
            storage=storage,
            records=Records(client, settings.queue),
            estimates=Estimates(client, settings.queue, catalog),
            follower=follower,
            storage_probe=StorageProbe(storage),
            bodies=Bodies(BODIES_AT_ONCE * settings.max_body_bytes),
            uploads=uploads,
            gate=Gate(client, allow_anonymous=anonymous_allowed(settings)),
            limits=Limits(client),
            idempotency=Idempotency(client, kept_seconds=settings.job_retention_seconds),
        )
    finally:
        uploads.close()
        await follower.close()
        await client.aclose()
        writer.close()


async def _services(request: Request) -> Services:  # async, or FastAPI sends it to a thread
    services: Services = request.state.services
    return services


Use = Annotated[Services, Depends(_services)]
"""A route's parameter of this type gets the collaborators."""
