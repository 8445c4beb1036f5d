"""The job resource: look, list, cancel, fetch its pictures."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse, Response

from service.access import Manages, Reads
from service.contract import failures, header, success
from service.core.errors import Gone, NotFound
from service.core.job import Status
from service.core.params import OutputFormat
from service.core.queue import forget
from service.core.storage import ObjectMissing
from service.dependencies import Use
from service.examples import JOB_EXAMPLE
from service.jobs.cursors import read_cursor, write_cursor
from service.jobs.views import JobPage, JobView
from service.routes.answers import download_name, job_answer, view

router = APIRouter()

JobId = Annotated[str, Path(description="The job's id.")]


@router.get("/jobs", operation_id="list_jobs", responses=failures(401, 403, 422, 503))
async def list_jobs(
    request: Request,
    services: Use,
    caller: Reads,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(description="From `next` of the page before.")] = None,
) -> JobPage:
    """Your jobs, newest first."""
    before = None if cursor is None else read_cursor(cursor)
    page, last = await services.records.page(caller.owner, before=before, limit=limit)
    following = None
    if last is not None:
        following = f"{request.base_url}jobs?limit={limit}&cursor={write_cursor(last)}"
    return JobPage(jobs=[await view(request, services, found) for found in page], next=following)


@router.get(
    "/jobs/{job_id}",
    operation_id="get_job",
    responses={
        200: success(
            "The job.",
            JobView,
            example=JOB_EXAMPLE,
            headers={"Retry-After": "While it is not final: seconds after which to ask again."},
        ),
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def get_job(request: Request, services: Use, caller: Reads, job_id: JobId) -> Response:
    """A job as it stands."""
    found = await services.records.get(job_id, caller.owner)
    return job_answer(await view(request, services, found))


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    responses={
        200: success("The job as it stands now.", JobView, example=JOB_EXAMPLE),
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def cancel_job(request: Request, services: Use, caller: Manages, job_id: JobId) -> Response:
    """End a job. One that has come to its end already stays as it is."""
    found = await services.records.get(job_id, caller.owner)
    if not found.job.status.is_terminal:
        request.state.changed = "the job may be canceled; ask again"
        await to_thread.run_sync(services.transitions.cancel, job_id)
        await to_thread.run_sync(forget, services.queue, job_id)
        found = await services.records.get(job_id, caller.owner)
    return job_answer(await view(request, services, found))


@router.delete(
    "/jobs/{job_id}",
    operation_id="delete_job",
    status_code=204,
    responses={
        204: success("All of it is gone."),
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def delete_job(request: Request, services: Use, caller: Manages, job_id: JobId) -> Response:
    """Delete a job at once: its record, its events, its uploads and its pictures.

    What workers remember of image prompts and texts, to encode the same only once, stays for a
    time that the operator sets: embeddings under a hash, which all jobs share.
    """
    await services.records.get(job_id, caller.owner)
    request.state.changed = "the job may be canceled; delete it again"
    # A worker that holds it learns of the cancel and gives up before the record is gone.
    await to_thread.run_sync(services.transitions.cancel, job_id)
    request.state.changed = "the job has ended, and some of it may still be there; delete it again"
    await to_thread.run_sync(forget, services.queue, job_id)
    for folder in (f"uploads/{job_id}", f"results/{job_id}"):
        await to_thread.run_sync(services.storage.delete_folder, folder)
    await to_thread.run_sync(services.transitions.erase, job_id, caller.owner)
    return Response(status_code=204)


@router.get(
    "/jobs/{job_id}/images/{number}",
    operation_id="get_image",
    response_class=Response,
    responses={
        200: success(
            "The picture; its metadata carry the job's parameters.",
            headers={"ETag": "The picture's SHA-256.", "Content-Disposition": "Its file name."},
            binary=tuple(one.content_type for one in OutputFormat),
        ),
        304: success("The picture that `If-None-Match` names."),
        307: success("Where the picture lies.", headers={"Location": "A presigned URL."}),
        **failures(401, 403, 404, 410, 422, 503),
    },
    openapi_extra={"parameters": [header("If-None-Match", "ETag of a picture at hand.", '"cdcd"')]},
)
async def get_image(
    request: Request,
    services: Use,
    caller: Reads,
    job_id: JobId,
    number: Annotated[int, Path(ge=0, le=3, description="From 0.")],
    *,
    redirect: Annotated[
        bool, Query(description="`false`: the picture itself, wherever it lies.")
    ] = True,
) -> Response:
    """A finished picture, or a redirect to where it lies."""
    job = (await services.records.get(job_id, caller.owner)).job
    if number >= len(job.images):
        state = "" if job.status is Status.SUCCEEDED else f"; the job is {job.status.value}"
        raise NotFound(f"The job has no picture {number}{state}")
    image = job.images[number]
    if services.storage.signs and redirect:
        url = await to_thread.run_sync(services.storage.sign, image.key)
        return RedirectResponse(url, status_code=307)
    etag = f'"{image.sha256}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=3600, immutable",
        "Content-Disposition": f'inline; filename="{download_name(job, number)}"',
    }
    known = request.headers.get("if-none-match", "")
    if not {etag, "*"}.isdisjoint(tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    try:
        data = await services.storage.get_async(image.key)
    except ObjectMissing:
        raise Gone("The picture has expired") from None
    return Response(data, media_type=image.content_type, headers=headers)
