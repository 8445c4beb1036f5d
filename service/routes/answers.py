"""Waits for jobs and renders them; shared by all routes that answer with one."""

import math
from typing import Final

from fastapi.responses import Response

from service.core.errors import Busy, Gone, JobUnfinished, NoPictures, NotFound
from service.core.job import Job, Status
from service.jobs.event_stream import EventStreams
from service.jobs.store import FoundJob, JobStore
from service.jobs.views import JobView

MAX_POLL_SECONDS: Final = 30
MAX_WAIT_SECONDS: Final = 600.0
"""How long a response that cannot name a job is held: the time-out of OpenAI's clients."""
BUSY_SECONDS: Final = 5


def job_response(shown: JobView, status: int = 200) -> Response:
    """JSON of a job; while it is not final, with `Retry-After` for the next poll."""
    headers = {}
    if not shown.status.is_terminal:
        eta = shown.eta_seconds or 1.0
        headers["Retry-After"] = str(min(MAX_POLL_SECONDS, max(1, math.ceil(eta))))
    return Response(
        shown.model_dump_json(), status_code=status, media_type="application/json", headers=headers
    )


def download_name(job: Job, number: int) -> str:
    """The file name that a browser suggests for a picture."""
    return f"{job.id}-{number}.{job.request.output_format.value}"


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
    event_streams: EventStreams, jobs: JobStore, job_id: str, *, owner: str, share: str
) -> FoundJob:
    """Wait until a job has pictures.

    Raises `NoPictures` where it ends without any, and `JobUnfinished` after `MAX_WAIT_SECONDS`.
    Neither response invites the client to send the request, which made a job, again.
    """
    await event_streams.wait(job_id, MAX_WAIT_SECONDS, owner=share)
    found = await stored_job(jobs, job_id, owner)
    job = found.job
    once = {"X-Job-Id": job_id, "x-should-retry": "false"}
    if not job.status.is_terminal:
        raise JobUnfinished(f"Job {job_id} goes on; ask for /jobs/{job_id}", headers=once)
    if job.status is not Status.SUCCEEDED:
        cause = job.error.detail if job.error else f"it is {job.status.value}"
        raise NoPictures(f"Job {job_id} has no pictures: {cause}", headers=once)
    return found
