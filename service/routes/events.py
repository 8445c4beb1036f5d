"""GET /jobs/{id}/events: a job's events as they happen (server-sent events, WHATWG HTML 9.2)."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError

from service.access import Reads
from service.contract import failures
from service.core import redis_keys
from service.core.errors import DependencyUnavailable, Gone, NotFound
from service.core.job import EventName, Job, Status
from service.dependencies import Services, Use
from service.jobs.event_stream import FIRST, Event
from service.jobs.store import Found
from service.routes.answers import view
from service.routes.jobs import JobId

router = APIRouter()

HEARTBEAT_SECONDS: Final = 10.0
RETRY_MILLISECONDS: Final = 2000
"""After what time a client that lost its connection should come back."""
_EVENT_ID: Final = r"^[0-9]{1,19}-[0-9]{1,19}$"


@router.get(
    "/jobs/{job_id}/events",
    operation_id="follow_job",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The events so far and as they happen, until the job has ended.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": "id: 1767268800400-0\nevent: progress\n"
                    'data: {"step": 12, "total": 30}\n\n',
                }
            },
        },
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def follow_job(
    request: Request,
    services: Use,
    caller: Reads,
    job_id: JobId,
    last_event_id: Annotated[
        str | None, Header(description="Go on after this event.", pattern=_EVENT_ID)
    ] = None,
) -> StreamingResponse:
    """Events `status`, `progress`, `preview`, and `done` with the whole job as the last one."""
    found = await services.records.get(job_id, caller.owner)
    if not services.follower.has_room:
        raise DependencyUnavailable("Too many streams are open", retry_after_seconds=10)
    return StreamingResponse(
        _stream(request, services, found, last_event_id or FIRST),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _stream(
    request: Request, services: Services, found: Found, after: str
) -> AsyncIterator[str]:
    job, last = found.job, after
    with services.follower.seat():
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        if await _is_over(services, job, after):
            yield await _done(request, services, job, last)
            return
        sent_at = time.monotonic()
        async for event in services.follower.events(job.id, after):
            if event is not None:
                last = event.id
                if event.name == EventName.DONE:
                    yield await _done(request, services, job, last)
                    return
                yield _frame(event)
            elif await _is_over(services, job, last):
                yield await _done(request, services, job, last)
                return
            elif time.monotonic() - sent_at < HEARTBEAT_SECONDS:
                continue
            else:
                yield ": still here\n\n"
            sent_at = time.monotonic()


async def _is_over(services: Services, job: Job, last: str) -> bool:
    """Whether no event will come after `last`; not while Redis is away.

    The client has seen the last one already or made its id up, the stream has expired, or the job
    was deleted and its last event came and went between two looks.
    """
    try:
        status: Any = await services.redis.hget(redis_keys.job(job.id), "status")
        if status is not None and not Status(status).is_terminal:
            return False
        return not await services.follower.has_news(job.id, last)
    except RedisError:
        return False


async def _done(request: Request, services: Services, job: Job, event_id: str) -> str:
    """The last event, with the whole job; nothing where the job was deleted meanwhile."""
    try:
        found = await services.records.get(job.id, job.owner)
    except (NotFound, Gone):
        return ""
    shown = await view(request, services, found)
    return _frame(Event(event_id, EventName.DONE, shown.model_dump_json()))


def _frame(event: Event) -> str:
    return f"id: {event.id}\nevent: {event.name}\ndata: {event.data}\n\n"
