"""Renders a job as a response; shared by all routes that answer with one."""

import math

from fastapi.responses import Response

from service.core.job import Job
from service.jobs.views import JobView

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
    return f"{job.id}-{number}.{job.request.output_format.value}"
