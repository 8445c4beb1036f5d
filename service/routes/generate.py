"""POST /generate: submits a request, and waits for its job where the client asks for that."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api_keys import Scope
from service.core.errors import Gone
from service.core.job import Status
from service.core.param_types import OutputFormat
from service.core.params import GenerateRequest
from service.core.storage import Storage, StorageError
from service.dependencies import Services, authorize, base_url_of, receiving, share_of, submitting
from service.jobs.store import FoundJob
from service.jobs.views import JobView
from service.problems import outcome_if_unavailable
from service.responses import JOB_EXAMPLE, failures, generate_body, header, success
from service.routes.answers import (
    DirectRoute,
    download_name,
    job_response,
    stored_job,
    whole_picture,
)
from service.submission.preferences import Accept, Preferences, read_accept, read_prefer
from service.submission.submit import read_origin

router = APIRouter(route_class=DirectRoute)


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
async def generate(request: Request) -> Response:
    """Queue a job; with `Prefer: wait`, respond with its result."""
    services: Services = request.state.services
    jobs, event_streams, storage = services.jobs, services.event_streams, services.storage
    caller = await authorize(services.authenticator, request.headers, Scope.GENERATE)
    share, base_url = share_of(request, caller), base_url_of(request)
    prefer = read_prefer(request.headers.getlist("prefer"))
    accept = read_accept(request.headers.get("accept", ""))
    waits = bool(prefer.wait_seconds) and event_streams.has_free_slot(share)
    submission = await submitting(services, caller)(
        receiving(request, caller)(GenerateRequest),
        read_origin(request.headers, base_url, accept if waits else None),
    )
    with outcome_if_unavailable(f"the job is queued as {submission.job_id}"):
        if submission.replayed:
            # A deleted job has no end to wait for.
            await stored_job(jobs, submission.job_id, caller.owner)
        ended = None
        if waits:
            ended = await event_streams.wait(
                submission.job_id,
                float(prefer.wait_seconds or 0),
                owner=share,
                check=partial(services.authenticator.check, caller),
            )
        found = None if waits else submission.job
        found = found or await stored_job(jobs, submission.job_id, caller.owner)
        response = await _picture(storage, found, accept) if ended else None
        if response is None:
            response = job_response(
                await services.views.show(found, base=base_url), 200 if ended else 202
            )
    response.headers.update(submission.headers)
    response.headers["Location"] = f"{base_url}jobs/{submission.job_id}"
    if submission.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Vary"] = "Accept, Prefer"
    _confirm(response, prefer, waited=ended is not None)
    return response


def _confirm(response: Response, prefer: Preferences, *, waited: bool) -> None:
    """Say which preferences were applied (RFC 7240, section 3)."""
    if waited:
        response.headers["Preference-Applied"] = f"wait={prefer.wait_seconds}"
    elif prefer.respond_async:
        response.headers["Preference-Applied"] = "respond-async"


async def _picture(storage: Storage, found: FoundJob, accept: Accept) -> Response | None:
    """The bytes of the only picture, where the client prefers them to JSON."""
    job = found.job
    wanted = accept.picture_format(job.request.output_format)
    if wanted is None or job.status is not Status.SUCCEEDED or len(job.images) != 1:
        return None
    image = job.images[0]
    try:
        data = await whole_picture(storage, image)
    except (StorageError, Gone):
        # The job is done and the client must learn its id: it gets JSON and can ask again.
        return None
    headers: dict[str, Any] = {
        "X-Job-Id": job.id,
        "X-Seed": str(image.seed),
        "Content-Disposition": f'inline; filename="{download_name(job, 0)}"',
    }
    return Response(data, media_type=image.content_type, headers=headers)
