"""The collaborators of the routes: built once at start-up, and given to routes one by one.

A route declares what it uses by a parameter of one of the types at the end of this file.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Protocol

import redis.asyncio as aioredis
from fastapi import Depends, Request
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.api_keys import (
    Authenticator,
    Caller,
    KeysMark,
    Scope,
    anonymous_allowed,
)
from service.browser_access import BrowserAccess
from service.connections import client_group
from service.core.catalog import Catalog, load_catalog
from service.core.errors import Forbidden
from service.core.metrics import ApiMetrics
from service.core.queue import open_queue
from service.core.schema import Declaration
from service.core.settings import Settings
from service.core.storage import Storage
from service.core.transitions import Transitions
from service.jobs.eta import Estimates
from service.jobs.event_stream import EventStreams
from service.jobs.queue import JobQueue
from service.jobs.store import FoundJob, JobStore
from service.jobs.views import JobView, JobViews
from service.limits import RateLimits
from service.periodic import RedisMonitor, StorageProbe
from service.signed_urls import SIGNATURE, SignedUrls
from service.submission.body import BodyBudget, BodyLimits, read_body
from service.submission.file_store import FileStore
from service.submission.form import Form
from service.submission.idempotency import Idempotency
from service.submission.links import Links
from service.submission.submit import Origin, Submission, submit
from service.submission.uploads import Uploads

CONNECT_SECONDS = 2
ANSWER_SECONDS = 5
POLLING_CONNECTIONS = 64
BODIES_AT_ONCE = 10
"""Of the largest size; 1,000 MiB of the 2 GiB that k8s/ gives to temporary files."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that is built at start-up."""

    settings: Settings
    catalog: Catalog
    metrics: ApiMetrics
    redis: "aioredis.Redis"
    queue: JobQueue
    transitions: Transitions
    storage: Storage
    jobs: JobStore
    estimates: Estimates
    event_streams: EventStreams
    storage_probe: StorageProbe
    redis_monitor: RedisMonitor
    body_budget: BodyBudget
    uploads: Uploads
    file_store: FileStore
    links: Links
    authenticator: Authenticator
    signed_urls: SignedUrls
    views: JobViews
    rate_limits: RateLimits
    idempotency: Idempotency


@asynccontextmanager
async def open_services(
    settings: Settings, metrics: ApiMetrics, stopping: asyncio.Event
) -> AsyncIterator[Services]:
    """Build the collaborators, and close their connections at the end.

    Raises `ConfigurationError` where settings or `models.yaml` are wrong.
    """
    url = settings.redis_url.get_secret_value()
    pool = aioredis.BlockingConnectionPool.from_url(
        url,
        decode_responses=True,
        encoding_errors="replace",  # a damaged record must not fail the answers of others
        max_connections=POLLING_CONNECTIONS,
        timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=AsyncRetry(NoBackoff(), 1),
        health_check_interval=15,
    )
    client = aioredis.Redis.from_pool(pool)
    # A transaction that may have been executed must not be sent again: no retries here.
    writer = Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    event_streams = EventStreams(url, limit=settings.max_event_streams, stopping=stopping)
    storage = Storage.from_settings(settings)
    catalog = load_catalog(settings.models)
    metrics.start_at_zero(catalog.models)
    transitions = Transitions(
        writer,
        retention_seconds=settings.job_retention_seconds,
        tombstone_seconds=settings.tombstone_seconds,
        max_attempts=settings.max_attempts,
        on_end=metrics.ends.count,
    )
    estimates = Estimates(client, settings.queue, catalog)
    signed_urls = SignedUrls(client, lifetime_seconds=settings.signed_url_seconds)
    redis_monitor = RedisMonitor(client)
    uploads = Uploads(storage, max_pixels=settings.max_image_pixels)
    file_store = FileStore(client, storage)
    links = Links(file_store, settings)
    try:
        yield Services(
            settings=settings,
            catalog=catalog,
            metrics=metrics,
            redis=client,
            queue=JobQueue(
                open_queue(settings.queue, writer),
                client,
                transitions,
                estimates,
                server=redis_monitor,
                max_jobs=settings.max_queued_jobs,
            ),
            transitions=transitions,
            storage=storage,
            jobs=JobStore(client, settings.queue),
            estimates=estimates,
            event_streams=event_streams,
            storage_probe=StorageProbe(storage),
            redis_monitor=redis_monitor,
            body_budget=BodyBudget(BODIES_AT_ONCE * settings.max_body_bytes),
            uploads=uploads,
            file_store=file_store,
            links=links,
            authenticator=Authenticator(
                client,
                anonymous=BrowserAccess(settings) if anonymous_allowed(settings) else None,
                mark=KeysMark(storage),
                on_missing=metrics.api_keys_missing.set,
            ),
            signed_urls=signed_urls,
            views=JobViews(estimates, signed_urls),
            rate_limits=RateLimits(client),
            idempotency=Idempotency(client, kept_seconds=settings.job_retention_seconds),
        )
    finally:
        uploads.close()
        await links.close()
        await event_streams.close()
        await client.aclose()
        writer.close()


def _part(name: str) -> Any:
    async def part(request: Request) -> Any:  # async, or FastAPI runs it in a thread
        return getattr(request.state.services, name)

    return Depends(part)


UseSettings = Annotated[Settings, _part("settings")]
UseCatalog = Annotated[Catalog, _part("catalog")]
UseMetrics = Annotated[ApiMetrics, _part("metrics")]
UseRedis = Annotated["aioredis.Redis", _part("redis")]
UseQueue = Annotated[JobQueue, _part("queue")]
UseTransitions = Annotated[Transitions, _part("transitions")]
UseStorage = Annotated[Storage, _part("storage")]
UseJobs = Annotated[JobStore, _part("jobs")]
UseEstimates = Annotated[Estimates, _part("estimates")]
UseEventStreams = Annotated[EventStreams, _part("event_streams")]
UseStorageProbe = Annotated[StorageProbe, _part("storage_probe")]
UseRedisMonitor = Annotated[RedisMonitor, _part("redis_monitor")]
UseFileStore = Annotated[FileStore, _part("file_store")]
UseAuthenticator = Annotated[Authenticator, _part("authenticator")]
UseSignedUrls = Annotated[SignedUrls, _part("signed_urls")]


async def authorize(
    authenticator: Authenticator, headers: Mapping[str, str], scope: Scope
) -> Caller:
    """The caller behind the headers of a request, who may do what `scope` says.

    Raises `Unauthorized`, `Forbidden` and `redis.RedisError`.
    """
    found = await authenticator.authenticate(headers)
    if found.key is not None and scope not in found.key.scopes:
        raise Forbidden(scope=scope.value)
    return found


def _needing(scope: Scope) -> Any:
    async def caller(request: Request) -> Caller:
        return await authorize(request.state.services.authenticator, request.headers, scope)

    return Depends(caller)


async def _reading_by_signature(
    request: Request, authenticator: UseAuthenticator, signed_urls: UseSignedUrls
) -> Caller:
    if SIGNATURE in request.query_params:
        path = request.url.path.removeprefix(request.scope.get("root_path", "")).lstrip("/")
        owner = await signed_urls.verify(path, request.query_params)
        found = await authenticator.key_owner(owner)
    else:
        found = await authenticator.authenticate(request.headers)
    if found.key is not None and Scope.READ not in found.key.scopes:
        raise Forbidden(scope=Scope.READ.value)
    return found


MayGenerate = Annotated[Caller, _needing(Scope.GENERATE)]
"""The caller, who needs the scope `generate`."""
MayRead = Annotated[Caller, _needing(Scope.READ)]
"""The caller, who needs the scope `read`."""
MayReadBySignature = Annotated[Caller, Depends(_reading_by_signature)]
"""The caller, who needs the scope `read` or a signed URL."""
MayManage = Annotated[Caller, _needing(Scope.MANAGE)]
"""The caller, who needs the scope `manage`."""


Share = Callable[[Caller], str]


def share_of(request: Request, caller: Caller) -> str:
    """With whom a caller shares slots and capacity: its key, or the address of an anonymous."""
    if caller.key is not None:
        return caller.owner
    address = client_group(request.client.host) if request.client is not None else ""
    return f"{caller.owner} {address}"


async def _share(request: Request) -> Share:
    return partial(share_of, request)


@lru_cache(maxsize=256)
def _base_url_of(scheme: str, host: str, prefix: str) -> str:
    headers = [(b"host", host.encode("latin-1"))]
    scope = {"type": "http", "scheme": scheme, "path": "/", "root_path": prefix}
    return str(Request({**scope, "query_string": b"", "headers": headers}).base_url)


def base_url_of(request: Request) -> str:
    """The URL of this service in links, with a slash at its end; as `Request.base_url`."""
    host = request.headers.get("host")
    if host is None:
        return str(request.base_url)
    scope = request.scope
    prefix = scope.get("app_root_path", scope.get("root_path", ""))
    return _base_url_of(scope["scheme"], host, prefix)


async def _base_url(request: Request) -> str:
    return base_url_of(request)


BaseUrl = Annotated[str, Depends(_base_url)]
"""The URL of this service in links, with a slash at its end."""

UseShare = Annotated[Share, Depends(_share)]
"""`share_of` for the request at hand."""

Show = Callable[[FoundJob], Awaitable[JobView]]


async def _show(request: Request) -> Show:
    services: Services = request.state.services
    return partial(services.views.show, base=base_url_of(request))


UseShow = Annotated[Show, Depends(_show)]
"""Makes the public view of a job, with its links and estimate."""


class Receive(Protocol):
    """Receives the request's body, whole, with the fields of a declaration."""

    def __call__(
        self, declaration: Declaration, *, inside: str | None = None, raw: str | None = None
    ) -> AbstractAsyncContextManager[Form]:
        """`inside` and `raw` as of `read_body`."""


def _limits(settings: Settings) -> BodyLimits:
    return BodyLimits(
        max_body_bytes=settings.max_body_bytes,
        max_file_bytes=settings.max_file_bytes,
        timeout_seconds=settings.body_timeout_seconds,
    )


def receiving(request: Request, caller: Caller) -> Receive:
    """Receives the request's body, whole, with the fields of a declaration."""
    services: Services = request.state.services

    @asynccontextmanager
    async def receive(
        declaration: Declaration, *, inside: str | None = None, raw: str | None = None
    ) -> AsyncIterator[Form]:
        headers, share = request.headers, share_of(request, caller)
        with services.body_budget.count(share) as counted:
            body, limits = counted(request.stream()), _limits(services.settings)
            with await read_body(
                declaration, headers, body, limits, inside=inside, raw=raw
            ) as form:
                base_url = str(request.base_url)
                await services.links.resolve(form, caller.owner, share=share, base_url=base_url)
                services.metrics.uploaded_bytes.inc(form.size_bytes)
                yield form

    return receive


async def _receive(request: Request, caller: MayGenerate) -> Receive:
    return receiving(request, caller)


UseReceive = Annotated[Receive, Depends(_receive)]
"""`receiving` for the request at hand."""


class Submit(Protocol):
    """`service.submission.submit.submit` with its collaborators."""

    async def __call__(
        self,
        body: AbstractAsyncContextManager[Form],
        origin: Origin,
        *,
        requires_images: bool = ...,
    ) -> Submission:
        """Queue a job for a body."""


def submitting(services: Services, caller: Caller) -> Submit:
    """Queues a job for the caller."""
    return partial(
        submit,
        caller,
        settings=services.settings,
        catalog=services.catalog,
        rate_limits=services.rate_limits,
        estimates=services.estimates,
        idempotency=services.idempotency,
        uploads=services.uploads,
        queue=services.queue,
        metrics=services.metrics,
    )


async def _submit(request: Request, caller: MayGenerate) -> Submit:
    return submitting(request.state.services, caller)


UseSubmit = Annotated[Submit, Depends(_submit)]
"""`submitting` for the request at hand."""
