"""POST /generate: takes a request in, and holds the answer where the client asks for it."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.access import Generates
from service.contract import failures, generate_body, header, success
from service.core.errors import Gone, NotFound
from service.core.job import Status
from service.core.params import OutputFormat
from service.core.storage import StorageError
from service.dependencies import Services, Use
from service.examples import JOB_EXAMPLE
from service.gate import Caller
from service.jobs.store import Found
from service.jobs.views import JobView
from service.routes.answers import download_name, job_answer, view
from service.submission.preferences import Preferences, read_prefer, wanted_format
from service.submission.submit import Taken, take_in

router = APIRouter()


@router.post(
    "/generate",
    status_code=202,
    operation_id="generate",
    responses={
        200: success(
            "With `Prefer: wait`: the job has ended. With `Accept: image/*` too, its picture.",
            JobView,
            example=JOB_EXAMPLE,
            headers={
                "Preference-Applied": "What was done of `Prefer`.",
                "X-Job-Id": "With a picture: the job that made it.",
                "X-Seed": "With a picture: its seed.",
            },
            binary=tuple(one.content_type for one in OutputFormat),
        ),
        202: success(
            "The job is queued.",
            JobView,
            headers={
                "Location": "URL of the job.",
                "Retry-After": "Seconds after which to ask for it.",
                "Idempotency-Replayed": "`true` where an earlier request had made the job.",
                "RateLimit": "What is left of the key's quota (IETF draft 10).",
                "RateLimit-Policy": "The key's quota.",
                "Preference-Applied": "What was done of `Prefer`.",
            },
        ),
        **failures(400, 401, 403, 409, 410, 413, 415, 422, 429, 503),
    },
    openapi_extra={
        "requestBody": generate_body(),
        "parameters": [
            header(
                "Prefer",
                "`wait=N` holds the answer up to N (at most 60) seconds until the "
                "job ends; `respond-async` does not (RFC 7240).",
                "wait=30",
            ),
            header(
                "Idempotency-Key",
                "Sent again with the same body, it stands for the same job; 1 to 255 visible "
                "ASCII characters, kept for a day.",
                "order-4711-first-try",
            ),
            header(
                "traceparent",
                "Trace that the job belongs to (W3C Trace Context).",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
        ],
    },
)
async def generate(request: Request, services: Use, caller: Generates) -> Response:
    """Queue a job; or, with `Prefer: wait`, answer with what came of it."""
    prefer = read_prefer(request.headers.getlist("prefer"))
    waits = bool(prefer.wait_seconds) and services.follower.has_room
    taken = await take_in(request, services, caller, waits=waits)
    request.state.changed = f"the job is queued as {taken.job_id}"
    if taken.replayed:
        await _stored(services, taken, caller)  # of a deleted job there is nothing to wait for
    ended = waits and await services.follower.wait(taken.job_id, float(prefer.wait_seconds or 0))
    found = await _stored(services, taken, caller)
    answer = None
    if ended:
        answer = await _picture(request, services, found)
    if answer is None:
        shown = await view(request, services, found)
        answer = job_answer(shown, 200 if ended else 202)
    answer.headers["Location"] = f"{request.base_url}jobs/{taken.job_id}"
    if taken.replayed:
        answer.headers["Idempotency-Replayed"] = "true"
    answer.headers["Vary"] = "Accept, Prefer"
    _confirm(answer, prefer, waited=waits)
    return answer


async def _stored(services: Services, taken: Taken, caller: Caller) -> Found:
    try:
        return await services.records.get(taken.job_id, caller.owner)
    except NotFound:
        raise Gone("The job was deleted") from None


def _confirm(answer: Response, prefer: Preferences, *, waited: bool) -> None:
    """Say what was done of what the client preferred (RFC 7240, section 3)."""
    if waited:
        answer.headers["Preference-Applied"] = f"wait={prefer.wait_seconds}"
    elif prefer.respond_async:
        answer.headers["Preference-Applied"] = "respond-async"


async def _picture(request: Request, services: Services, found: Found) -> Response | None:
    """The bytes of the only picture, where the client would rather have them than JSON."""
    job = found.job
    wanted = wanted_format(request.headers.get("accept", ""), job.request.output_format)
    if wanted is None or job.status is not Status.SUCCEEDED or len(job.images) != 1:
        return None
    image = job.images[0]
    try:
        data = await services.storage.get_async(image.key)
    except StorageError:
        # The job is done and the client must learn its id: it gets JSON and can ask again.
        return None
    headers: dict[str, Any] = {
        "X-Job-Id": job.id,
        "X-Seed": str(image.seed),
        "Content-Disposition": f'inline; filename="{download_name(job, 0)}"',
    }
    return Response(data, media_type=image.content_type, headers=headers)
