"""Turns a request body into a queued job: read, check, store, queue. All of it happens or nothing.

Routes and facades pass the collaborators in and render the `Submission`.
"""

import secrets
import uuid
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from pydantic import BaseModel
from starlette.datastructures import Headers

from service.api_keys import Caller
from service.core import redis_keys, tracing
from service.core.catalog import Catalog
from service.core.errors import FieldError, InvalidField, RateLimited, ServiceError
from service.core.job import Job, Status
from service.core.metrics import ApiMetrics
from service.core.param_types import MAX_IMAGES_PER_JOB, MAX_SEED, OutputFormat
from service.core.settings import Settings
from service.jobs.eta import Estimates
from service.jobs.queue import JobQueue
from service.jobs.store import FoundJob
from service.limits import RateLimits, concurrency_headers
from service.submission.form import Form
from service.submission.idempotency import (
    Idempotency,
    IdempotencyClaim,
    fingerprint,
    read_key,
)
from service.submission.preferences import Accept
from service.submission.uploads import Uploads
from service.submission.validate import validate
from service.webhooks.url_policy import may_be_called

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """The job of a request; `replayed` where an earlier request has created it."""

    job_id: str
    replayed: bool = False
    job: FoundJob | None = None
    """As it was queued just now."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What is left of the caller's quota, as headers of the response."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a job takes from its request beside the body."""

    base_url: str
    """Where links in its webhook lead."""
    idempotency_key: str | None
    traceparent: str | None
    accept: Accept | None
    """Decides the picture format where the response may be the picture itself."""
    webhook_payload: str | None = None
    """Which facade's payload its webhook has; a name of `service.webhooks.delivery.Payloads`."""


def read_origin(
    headers: Headers,
    base_url: str,
    accept: Accept | None = None,
    *,
    webhook_payload: str | None = None,
) -> Origin:
    """What a job takes from the headers of its request. Raises `InvalidField`."""
    return Origin(
        base_url=base_url,
        idempotency_key=read_key(headers),
        traceparent=tracing.carried(headers),
        accept=accept,
        webhook_payload=webhook_payload,
    )


async def submit(
    caller: Caller,
    body: AbstractAsyncContextManager[Form],
    origin: Origin,
    *,
    settings: Settings,
    catalog: Catalog,
    rate_limits: RateLimits,
    estimates: Estimates,
    idempotency: Idempotency,
    uploads: Uploads,
    queue: JobQueue,
    metrics: ApiMetrics,
    requires_images: bool = True,
) -> Submission:
    """Read `body` and queue a job for it; the body is read only if a job may be accepted.

    A form that was read already is passed as `contextlib.nullcontext(form)`.

    Raises the errors of the contract; after any of them nothing is left in storage or Redis.
    """
    headers: dict[str, str] = {}
    if caller.key is not None and caller.key.requests_per_minute is not None:
        quota = caller.key.requests_per_minute
        allowance, error = await rate_limits.spend(caller.owner, quota)
        if error is not None:
            raise error
        headers = allowance.headers
    try:
        if origin.idempotency_key is None:
            # A request that may be a repetition is never refused because the queue is full.
            await queue.check_capacity()
        async with body as form, AsyncExitStack() as undo:
            sent = form.parse()
            valid = validate(
                sent,
                {name: len(files) for name, files in form.files.items()},
                catalog,
                seed=secrets.randbelow(
                    MAX_SEED + 1 - MAX_IMAGES_PER_JOB
                ),  # so that each can be sent
                output_format=_output_format(sent, origin.accept),
                requires_images=requires_images,
            )
            _check_webhook(valid.values["webhook_url"], settings, caller)
            claim = None
            if origin.idempotency_key is not None:
                begun = await idempotency.begin(
                    caller.owner, origin.idempotency_key, fingerprint(sent, form.files)
                )
                if isinstance(begun, str):
                    return Submission(begun, replayed=True, headers=headers)
                claim = begun
                undo.push_async_callback(idempotency.abandon, claim)
                await queue.check_capacity()
            job_id = str(uuid.uuid4())
            if caller.key is not None and caller.key.max_jobs is not None:
                await _reserve(rate_limits, estimates, caller.owner, job_id, caller.key.max_jobs)
                undo.push_async_callback(rate_limits.release, caller.owner, job_id)
            async with idempotency.kept(claim):
                stored = await uploads.store(job_id, form, owner=caller.owner)
            undo.push_async_callback(uploads.discard, job_id)
            now = queue.now()
            job = Job(
                id=job_id,
                owner=caller.owner,
                status=Status.QUEUED,
                request=valid.with_uploads(stored),
                created_at=now,
                deadline_at=now + settings.queue_deadline_seconds,
                traceparent=origin.traceparent,
            )
            if claim is not None:
                await idempotency.renew(claim)
            also = partial(_write_beside, job, claim, idempotency, origin, form.webhook_events)
            found = await queue.add(job, also=also, undo=undo)
            undo.pop_all()
    except ServiceError as error:
        error.headers = _merged(headers, error.headers)
        raise
    metrics.jobs_accepted.labels(job.request.model).inc()
    log.info("job queued", job_id=job.id, model=job.request.model, row_steps=job.request.row_steps)
    return Submission(job.id, job=found, headers=headers)


def _write_beside(
    job: Job,
    claim: IdempotencyClaim | None,
    idempotency: Idempotency,
    origin: Origin,
    webhook_events: tuple[str, ...],
    pipeline: Any,
) -> None:
    """Add to the transaction that creates a job."""
    if claim is not None:
        idempotency.bind(claim, job.id, pipeline)
    if job.request.webhook_url is not None:
        # Where links in the webhook lead; without this field no webhook is sent.
        pipeline.hset(redis_keys.job(job.id), "webhook", origin.base_url)
        if origin.webhook_payload is not None:
            pipeline.hset(redis_keys.job(job.id), "webhook_payload", origin.webhook_payload)
        if webhook_events:
            pipeline.hset(redis_keys.job(job.id), "webhook_events", " ".join(webhook_events))


async def _reserve(
    rate_limits: RateLimits, estimates: Estimates, owner: str, job_id: str, limit: int
) -> None:
    if await rate_limits.reserve(owner, job_id, limit):
        return
    seconds = await estimates.seconds_until_owner_capacity(owner)
    raise RateLimited(
        f"This API key is limited to {limit} jobs queued or running at once",
        retry_after_seconds=seconds,
        headers=concurrency_headers(limit, seconds),
    )


def _merged(headers: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Both; the values of a header that is in both are listed."""
    both = {name: f"{headers[name]}, {more[name]}" for name in headers if name in more}
    return {**headers, **more, **both}


def _check_webhook(url: str | None, settings: Settings, caller: Caller) -> None:
    if url is None:
        return
    message = None
    if caller.key is None and settings.webhook_secret is None:
        message = "needs an API key, whose secret signs webhooks"
    elif not may_be_called(url, settings.webhook_networks):
        message = "must be a public address"
    if message is not None:
        raise InvalidField.of(FieldError("webhook_url", message))


def _output_format(sent: BaseModel, accept: Accept | None) -> OutputFormat:
    asked: OutputFormat | None = dict(sent)["output_format"]
    return asked or (accept and accept.picture_format(None)) or OutputFormat.PNG
