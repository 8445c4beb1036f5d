"""How a job becomes an answer; shared by all routes that answer with one."""

import math

from fastapi import Request
from fastapi.responses import Response

from service.core.job import Job
from service.dependencies import Services
from service.jobs.store import Found
from service.jobs.views import JobView, job_view

MAX_POLL_SECONDS = 30


async def view(request: Request, services: Services, found: Found) -> JobView:
    """The job with its links and estimate."""
    eta = await services.estimates.eta_seconds(found.job)
    return job_view(found.job, base=str(request.base_url), ahead=found.ahead, eta_seconds=eta)


def job_answer(shown: JobView, status: int = 200) -> Response:
    """JSON of a job; while it is not final, with a hint when to ask again."""
    headers = {}
    if not shown.status.is_terminal:
        eta = shown.eta_seconds or 1.0
        headers["Retry-After"] = str(min(MAX_POLL_SECONDS, max(1, math.ceil(eta))))
    return Response(
        shown.model_dump_json(), status_code=status, media_type="application/json", headers=headers
    )


def download_name(job: Job, number: int) -> str:
    """File name under which a browser saves a picture."""
    return f"{job.id}-{number}.{job.request.output_format.value}"
