"""Renders a job as a response; shared by all routes that answer with one."""

import hashlib
import math

import structlog
from anyio import to_thread
from fastapi.responses import Response

from service.core.errors import Gone
from service.core.job import Job, StoredImage
from service.core.storage import ObjectMissing, Storage
from service.jobs.views import JobView

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_POLL_SECONDS = 30


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
