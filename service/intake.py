"""Makes a job of a request body: read, check, store, queue. Either all of it happens or nothing.

It knows nothing of how the answer looks; that is in `service/routes/generate.py`.
"""

import re
import secrets
import time
import uuid
from functools import partial
from typing import Final

import structlog
from anyio import to_thread
from redis.exceptions import RedisError
from starlette.requests import Request

from service.core import keys
from service.core.errors import QueueFull, TooLarge
from service.core.job import Job, Status
from service.core.queue import enqueue, list_key
from service.core.request import OutputFormat
from service.fields import CONTROL, IMAGE, MAX_IMAGES, Fields, Plan, parse
from service.multipart import Form, Shape, read_form
from service.preferences import wanted_format
from service.state import Services

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def take_in(request: Request, services: Services, owner: str, *, waits: bool) -> Job:
    """Read the body of `request` and queue a job of it.

    Raises the errors of the contract; after any of them nothing is left in storage or Redis.
    """
    await _check_room(services)
    with await _read_body(request, services) as form:
        services.metrics.uploaded_bytes.inc(form.size_bytes)
        fields = parse(form.texts)
        plan = Plan(
            fields,
            services.catalog,
            images=len(form.files.get(IMAGE, ())),
            control=CONTROL in form.files,
        )
        job_id = str(uuid.uuid4())
        stored = await services.uploads.store(job_id, form.files)
    now = time.time()
    job = Job(
        id=job_id,
        owner=owner,
        status=Status.QUEUED,
        request=plan.request(
            stored[IMAGE],
            stored[CONTROL][0] if CONTROL in stored else None,
            output_format=_format(request, fields, waits=waits),
            drawn_seed=secrets.randbelow(2**32),
        ),
        created_at=now,
        deadline_at=now + services.settings.queue_deadline_seconds,
        traceparent=_traceparent(request),
    )
    await _enqueue(services, job)
    services.metrics.jobs_accepted.labels(job.request.model).inc()
    log.info("job queued", job_id=job.id, model=job.request.model, row_steps=job.request.row_steps)
    return job


async def _check_room(services: Services) -> None:
    """Refuse early, before a body is read that could not be used."""
    waiting = await services.redis.llen(list_key(services.settings.queue))
    if waiting >= services.settings.max_queued_jobs:
        raise QueueFull(
            f"{waiting} jobs are waiting, as many as may",
            retry_after_seconds=await services.estimates.room_seconds(),
        )


async def _read_body(request: Request, services: Services) -> Form:
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
    return await read_form(request.headers.get("content-type", ""), request.stream(), shape)


def _format(request: Request, fields: Fields, *, waits: bool) -> OutputFormat:
    wanted = None
    if waits:
        wanted = wanted_format(request.headers.get("accept", ""), fields.output_format)
    return fields.output_format or wanted or OutputFormat.PNG


def _traceparent(request: Request) -> str | None:
    """The caller's trace (W3C Trace Context, 3.2), where it is well-formed."""
    value = request.headers.get("traceparent", "")
    return value if _TRACEPARENT.fullmatch(value) and not value.startswith("ff") else None


async def _enqueue(services: Services, job: Job) -> None:
    write = partial(enqueue, services.queue, services.transitions, job)
    try:
        await to_thread.run_sync(write)
    except RedisError:
        # The answer may have been lost after the transaction: then the job is there and is kept.
        # Where Redis cannot tell, the uploads are left to the sweep, so that no job loses them.
        if await services.redis.exists(keys.job(job.id)):
            return
        await services.uploads.discard(job.id)
        raise
