"""Waits for jobs and renders them; shared by all routes that answer with one."""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import structlog
from anyio import to_thread
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from redis.exceptions import RedisError
from starlette.routing import request_response

from service.core.errors import Busy, Gone, JobUnfinished, NoPictures, NotFound
from service.core.job import Job, Status, StoredImage
from service.core.storage import ObjectMissing, Storage, StorageError
from service.jobs.event_stream import Check, EventStreams
from service.jobs.store import FoundJob, JobStore
from service.jobs.views import JobView

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DirectRoute(APIRoute):
    """Hands the request and what its path names to its function, and resolves nothing else.

    For the two routes that are called most: dependencies cost as much as all the rest of a poll.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app = request_response(self._answer)  # Starlette's, which keeps no exit stacks

    async def _answer(self, request: Request) -> Response:
        response: Response = await self.endpoint(request, **request.path_params)
        return response


T = TypeVar("T")
MAX_POLL_SECONDS: Final = 30
MAX_WAIT_SECONDS: Final = 600.0
"""How long a response that cannot name a job is held: the time-out of OpenAI's clients."""
BUSY_SECONDS: Final = 5


def job_response(shown: JobView, status: int = 200) -> Response:
    """JSON of a job; while it is not final, with `Retry-After` for the next poll."""
    headers = {} if shown.status.is_terminal else poll_again(shown.eta_seconds)
    return Response(
        shown.model_dump_json(), status_code=status, media_type="application/json", headers=headers
    )


def poll_again(eta_seconds: float | None) -> dict[str, str]:
    """`Retry-After` of a job that is not final."""
    return {"Retry-After": str(math.ceil(min(MAX_POLL_SECONDS, max(1.0, eta_seconds or 1.0))))}


async def shown_jobs(page: Sequence[FoundJob], show: Callable[[FoundJob], Awaitable[T]]) -> list[T]:
    """Each job of a page as `show` renders it; one with a record that it cannot is left out."""
    shown = []
    for found in page:
        try:
            shown.append(await show(found))
        except (RedisError, StorageError):
            raise
        except Exception:
            log.exception("a job that cannot be shown is left out of a list", job_id=found.job.id)
    return shown


def is_known(etag: str, if_none_match: str) -> bool:
    """Whether `If-None-Match` names the entity tag; compared weakly (RFC 9110, 13.1.2)."""
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return not known.isdisjoint({etag.removeprefix("W/"), "*"})


async def unless_hung_up(request: Request, waiting: Coroutine[Any, Any, T]) -> T | None:
    """The result of `waiting`; `None` where the client has disconnected, which ends the wait."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def download_name(job: Job, number: int) -> str:
    """The file name that a browser suggests for a picture."""
    return f"{job.id}-{number}.{job.images[number].content_type.rpartition('/')[2]}"


async def whole_picture(storage: Storage, image: StoredImage) -> bytes:
    """The bytes of a finished picture, if they are those of its record. Raises `Gone` if not."""
    try:
        data = await storage.get_async(image.key)
    except ObjectMissing:
        raise Gone("The picture has expired") from None
    if (await to_thread.run_sync(hashlib.sha256, data)).hexdigest() != image.sha256:
        raise _damaged(image, len(data))
    return data


async def check_size(storage: Storage, image: StoredImage) -> None:
    """Raise `Gone` where a finished picture in storage has another size than its record says."""
    try:
        size_bytes = await storage.size_async(image.key)
    except ObjectMissing:
        raise Gone("The picture has expired") from None
    if image.size_bytes is not None and size_bytes != image.size_bytes:
        raise _damaged(image, size_bytes)


def _damaged(image: StoredImage, size_bytes: int) -> Gone:
    log.error("a picture is damaged in storage", key=image.key, size_bytes=size_bytes)
    return Gone("The picture is damaged in storage; the same parameters make it again")


def check_free_slot(event_streams: EventStreams, share: str) -> None:
    """Raise `Busy` where a request could not wait for its job; to be asked before it is queued."""
    if not event_streams.has_free_slot(share):
        raise Busy("Too many requests are waiting for jobs", retry_after_seconds=BUSY_SECONDS)


async def stored_job(jobs: JobStore, job_id: str, owner: str) -> FoundJob:
    """The job of a submission. Raises `Gone` where it has been deleted meanwhile."""
    try:
        return await jobs.get(job_id, owner)
    except NotFound:
        raise Gone("The job was deleted") from None


async def succeeded_job(
    event_streams: EventStreams,
    jobs: JobStore,
    job_id: str,
    *,
    owner: str,
    share: str,
    check: Check,
) -> FoundJob:
    """Wait until a job has pictures, or `check` raises.

    Raises `NoPictures` where it ends without any, and `JobUnfinished` after `MAX_WAIT_SECONDS`.
    Neither response invites the client to send the request, which made a job, again.
    """
    await event_streams.wait(job_id, MAX_WAIT_SECONDS, owner=share, check=check)
    found = await stored_job(jobs, job_id, owner)
    job = found.job
    once = {"X-Job-Id": job_id, "x-should-retry": "false"}
    if not job.status.is_terminal:
        raise JobUnfinished(f"Job {job_id} goes on; ask for /jobs/{job_id}", headers=once)
    if job.status is not Status.SUCCEEDED:
        cause = job.error.detail if job.error else f"it is {job.status.value}"
        raise NoPictures(f"Job {job_id} has no pictures: {cause}", headers=once)
    return found
