"""GET /jobs/{id}/events: a job's events as they happen (server-sent events, WHATWG HTML 9.2)."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header
from fastapi.responses import Response, StreamingResponse

from service.api_keys import Authenticator, Caller
from service.core.errors import DependencyUnavailable, Gone, NotFound, Unauthorized
from service.core.job import EventName
from service.dependencies import (
    MayReadBySignature,
    Show,
    UseAuthenticator,
    UseEventStreams,
    UseJobs,
    UseShare,
    UseShow,
)
from service.jobs.event_stream import FIRST, Event, EventStreams
from service.jobs.store import FoundJob, JobStore
from service.responses import failures
from service.routes.jobs import JobId

router = APIRouter()

HEARTBEAT_SECONDS: Final = 10.0
RETRY_MILLISECONDS: Final = 2000
"""A client that lost its connection should reconnect after this time."""
BUSY_SECONDS: Final = 10
"""`Retry-After` where no subscriber slot is free."""
_EVENT_ID: Final = r"^[0-9]{1,19}-[0-9]{1,19}$"
LastEventId = Annotated[
    str | None, Header(description="Continue after this event.", pattern=_EVENT_ID)
]


@dataclass(frozen=True, slots=True)
class Subscription:
    """One client that follows one job, and what that takes."""

    found: FoundJob
    jobs: JobStore
    event_streams: EventStreams
    show: Show
    caller: Caller
    authenticator: Authenticator


async def subscribe(
    caller: MayReadBySignature,
    share: UseShare,
    jobs: UseJobs,
    event_streams: UseEventStreams,
    authenticator: UseAuthenticator,
    show: UseShow,
    job_id: JobId,
) -> AsyncIterator[Subscription]:
    """Hold a subscriber slot until the response has been sent or its client has disconnected."""
    found = await jobs.get(job_id, caller.owner)
    with event_streams.subscriber_slot(share(caller), job_id) as has_slot:
        if not has_slot:
            raise DependencyUnavailable(
                "Too many event streams are open", retry_after_seconds=BUSY_SECONDS
            )
        yield Subscription(found, jobs, event_streams, show, caller, authenticator)


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
        204: {"description": "The job has ended and `Last-Event-ID` is its last event."},
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def follow_job(
    subscription: Annotated[Subscription, Depends(subscribe)], last_event_id: LastEventId = None
) -> Response:
    """Events `status`, `progress`, `preview`, and `done` with the whole job as the last one."""
    return await stream(subscription, last_event_id, _frame, _done)


async def stream(
    subscription: Subscription,
    last_event_id: str | None,
    frame: Callable[[Event], str],
    done: Callable[[Subscription, str], Awaitable[str]],
) -> Response:
    """The events of a job after the last one read, each as the text that `frame` makes of it.

    `done` makes the last text, with the id of the last event. 204 where that was read.
    """
    if (
        last_event_id is not None
        and subscription.found.job.status.is_terminal
        and await subscription.event_streams.is_over(subscription.found.job.id, last_event_id)
    ):
        return Response(status_code=204)  # an EventSource reconnects until it is told so
    return StreamingResponse(
        _texts(subscription, last_event_id or FIRST, frame, done),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _texts(
    subscription: Subscription,
    after: str,
    frame: Callable[[Event], str],
    done: Callable[[Subscription, str], Awaitable[str]],
) -> AsyncIterator[str]:
    job_id, last = subscription.found.job.id, after
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    if await subscription.event_streams.is_over(job_id, after):
        yield await done(subscription, last)
        return
    sent_at, is_done = time.monotonic(), False
    async for event in subscription.event_streams.events(job_id, after):
        try:
            await subscription.authenticator.check(subscription.caller)
        except Unauthorized:
            return
        if event is not None:
            last, is_done = event.id, event.name == EventName.DONE
            if not is_done:
                yield frame(event)
        elif time.monotonic() - sent_at < HEARTBEAT_SECONDS:
            continue
        else:
            yield ": heartbeat\n\n"
        sent_at = time.monotonic()
    if is_done or not subscription.event_streams.stopping:
        yield await done(subscription, last)


async def _done(subscription: Subscription, event_id: str) -> str:
    """The last event, with the whole job; empty where the job has been deleted."""
    job = subscription.found.job
    try:
        found = await subscription.jobs.get(job.id, job.owner)
    except (NotFound, Gone):
        return ""
    shown = await subscription.show(found)
    return _frame(Event(event_id, EventName.DONE, shown.model_dump_json()))


def _frame(event: Event) -> str:
    return f"id: {event.id}\nevent: {event.name}\ndata: {event.data}\n\n"
