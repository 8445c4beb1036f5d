"""Makes a job of a request body: read, check, store, queue. Either all of it happens or nothing.

It knows nothing of how the answer looks; that is in `service/routes/generate.py`.
"""

import asyncio
import secrets
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from anyio import to_thread
from redis.exceptions import RedisError
from starlette.requests import Request

from service.core import redis_keys, tracing
from service.core.errors import (
    DependencyUnavailable,
    FieldError,
    MalformedBody,
    QueueFull,
    RateLimited,
    TooLarge,
)
from service.core.job import Job, Status
from service.core.params import MAX_PICTURES, OutputFormat
from service.core.queue import enqueue, list_key
from service.dependencies import Services
from service.gate import Caller
from service.problems import AWAY_SECONDS
from service.rate_limits import no_room_headers
from service.submission.fields import CONTROL, IMAGE, MAX_IMAGES, Fields, invalid, parse
from service.submission.form import Form, Shape, read_form
from service.submission.idempotency import Mark, fingerprint, read_key
from service.submission.preferences import wanted_format
from service.submission.room import Counted
from service.submission.validate import Plan
from service.webhooks.url_policy import may_be_called

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that stands for a request; `replayed` where an earlier one had made it."""

    job_id: str
    replayed: bool = False


async def take_in(request: Request, services: Services, caller: Caller, *, waits: bool) -> Taken:
    """Read the body of `request` and queue a job of it.

    Raises the errors of the contract; after any of them nothing is left in storage or Redis.
    """
    await _count(request, services, caller)
    key = read_key(request.headers)
    if key is None:
        # A request that may stand for a job that is there already is never refused for room.
        await _check_room(services)
    with services.bodies.hold() as counted, await _read_body(request, services, counted) as form:
        services.metrics.uploaded_bytes.inc(form.size_bytes)
        fields = parse(form.texts)
        images = len(form.files.get(IMAGE, ()))
        plan = Plan(fields, services.catalog, images=images, control=CONTROL in form.files)
        _check_webhook(fields, services, caller)
        job_id = str(uuid.uuid4())
        async with AsyncExitStack() as undo:  # what is taken back unless the job comes to be
            mark = None
            if key is not None:
                begun = await services.idempotency.begin(
                    caller.owner, key, fingerprint(fields, form.files)
                )
                if isinstance(begun, str):
                    return Taken(begun, replayed=True)
                mark = begun
                undo.push_async_callback(services.idempotency.abandon, mark)
                await _check_room(services)
            if caller.key is not None and caller.key.max_jobs is not None:
                await _reserve(request, services, caller.owner, job_id, caller.key.max_jobs)
                undo.push_async_callback(services.limits.release, caller.owner, job_id)
            async with services.idempotency.kept(mark):
                stored = await services.uploads.store(job_id, form.files)
            undo.push_async_callback(services.uploads.discard, job_id)
            now = time.time()
            job = Job(
                id=job_id,
                owner=caller.owner,
                status=Status.QUEUED,
                request=plan.request(
                    stored[IMAGE],
                    stored[CONTROL][0] if CONTROL in stored else None,
                    output_format=_format(request, fields, waits=waits),
                    drawn_seed=secrets.randbelow(2**32 - MAX_PICTURES),  # so that each can be sent
                ),
                created_at=now,
                deadline_at=now + services.settings.queue_deadline_seconds,
                traceparent=tracing.carried(request.headers),
            )
            await _enqueue(services, job, mark, base=str(request.base_url), undo=undo)
            undo.pop_all()
    services.metrics.jobs_accepted.labels(job.request.model).inc()
    log.info("job queued", job_id=job.id, model=job.request.model, row_steps=job.request.row_steps)
    return Taken(job.id)


async def _count(request: Request, services: Services, caller: Caller) -> None:
    """Count the request against its key's quota, and let the answer say what is left."""
    if caller.key is None or caller.key.requests_per_minute is None:
        return
    allowance, refusal = await services.limits.spend(caller.owner, caller.key.requests_per_minute)
    request.state.extra_headers = allowance.headers
    if refusal is not None:
        raise refusal


async def _reserve(
    request: Request, services: Services, owner: str, job_id: str, most: int
) -> None:
    """Take one of the key's places for jobs, or say when there is one."""
    if await services.limits.reserve(owner, job_id, most):
        return
    seconds = await services.estimates.own_room_seconds(owner)
    headers: dict[str, str] = getattr(request.state, "extra_headers", {})
    for name, value in no_room_headers(most, seconds).items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    request.state.extra_headers = headers
    raise RateLimited(
        f"This key may have {most} jobs queued or running at once", retry_after_seconds=seconds
    )


def _check_webhook(fields: Fields, services: Services, caller: Caller) -> None:
    if fields.webhook_url is None:
        return
    if caller.key is None and services.settings.webhook_secret is None:
        raise invalid([FieldError("webhook_url", "needs an API key, whose secret signs webhooks")])
    if not may_be_called(str(fields.webhook_url), services.settings.webhook_networks):
        raise invalid([FieldError("webhook_url", "is no public address")])


async def _check_room(services: Services) -> None:
    """Refuse early, before a body is read that could not be used."""
    waiting = await services.redis.llen(list_key(services.settings.queue))
    if waiting >= services.settings.max_queued_jobs:
        raise await _full(services)


async def _full(services: Services) -> QueueFull:
    return QueueFull(
        f"{services.settings.max_queued_jobs} jobs are waiting, as many as may",
        retry_after_seconds=await services.estimates.room_seconds(),
    )


async def _read_body(request: Request, services: Services, counted: Counted) -> Form:
    settings = services.settings
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_body_bytes:
        raise TooLarge(f"The body is larger than {settings.max_body_bytes} bytes")
    shape = Shape(
        texts=frozenset(Fields.model_fields),
        files={IMAGE: MAX_IMAGES, CONTROL: 1},
        max_body_bytes=settings.max_body_bytes,
        max_file_bytes=settings.max_file_bytes,
    )
    kind = request.headers.get("content-type", "")
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            return await read_form(kind, counted(request.stream()), shape)
    except TimeoutError:
        raise MalformedBody(
            f"The body did not come in within {settings.body_timeout_seconds:g} seconds"
        ) from None


def _format(request: Request, fields: Fields, *, waits: bool) -> OutputFormat:
    wanted = None
    if waits:
        wanted = wanted_format(request.headers.get("accept", ""), fields.output_format)
    return fields.output_format or wanted or OutputFormat.PNG


async def _enqueue(
    services: Services, job: Job, mark: Mark | None, *, base: str, undo: AsyncExitStack
) -> None:
    """Queue the job, unless the queue is full by now."""

    def also(pipeline: Any) -> None:
        if mark is not None:
            services.idempotency.bind(mark, job.id, pipeline)
        if job.request.webhook_url is not None:
            # Where the links of the webhook's job lead; its presence lets the end send one.
            pipeline.hset(redis_keys.job(job.id), "webhook", base)

    if mark is not None:
        await services.idempotency.renew(mark)
    try:
        queued = await to_thread.run_sync(
            partial(
                enqueue,
                services.queue,
                services.transitions,
                job,
                most=services.settings.max_queued_jobs,
                also=also,
            )
        )
    except RedisError:
        # The answer may have been lost after the transaction: then the job is there and is kept.
        # Where Redis cannot tell, all is left to the sweep or the bucket's rule, so that no job
        # loses its uploads.
        kept = undo.pop_all()
        try:
            queued = bool(await services.redis.exists(redis_keys.job(job.id)))
        except RedisError:
            raise DependencyUnavailable(
                "The job store does not answer; the job may be queued nevertheless. Repeat the "
                "request with an Idempotency-Key, with its own where it had one, so that no "
                "further repetition makes another job",
                retry_after_seconds=AWAY_SECONDS,
            ) from None
        if not queued:
            await kept.aclose()
            raise
    if not queued:  # others came between the first look and now
        raise await _full(services)
