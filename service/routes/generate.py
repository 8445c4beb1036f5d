"""POST /generate: takes a request in, and holds the answer where the client asks for it."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.core.job import Status
from service.core.storage import StorageError
from service.intake import take_in
from service.preferences import Preferences, read_prefer, wanted_format
from service.records import Found
from service.routes.answers import download_name, job_answer, view
from service.state import Services, Use

router = APIRouter()


@router.post("/generate", status_code=202, operation_id="generate")
async def generate(request: Request, services: Use) -> Response:
    """Queue a job; or, with `Prefer: wait`, answer with what came of it."""
    prefer = read_prefer(request.headers.getlist("prefer"))
    owner = "anonymous"
    waits = bool(prefer.wait_seconds)
    job = await take_in(request, services, owner, waits=waits)
    ended = waits and await services.follower.wait(job.id, float(prefer.wait_seconds or 0))
    found = await services.records.get(job.id, owner)
    answer = None
    if ended:
        answer = await _picture(request, services, found)
    if answer is None:
        shown = await view(request, services, found)
        answer = job_answer(shown, 200 if ended else 202)
    answer.headers["Location"] = f"{request.base_url}jobs/{job.id}"
    answer.headers["Vary"] = "Accept, Prefer"
    _confirm(answer, prefer)
    return answer


def _confirm(answer: Response, prefer: Preferences) -> None:
    """Say what was done of what the client preferred (RFC 7240, section 3)."""
    if prefer.wait_seconds:
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
