"""The job resource: get, list, cancel, delete, and its pictures."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import RedirectResponse, Response

from service.core.errors import NotFound
from service.core.job import Status, StoredImage
from service.core.param_types import MAX_CONTROL_MAPS, MAX_IMAGES_PER_JOB, OutputFormat
from service.core.storage import Storage
from service.dependencies import (
    BaseUrl,
    MayManage,
    MayRead,
    MayReadBySignature,
    UseJobs,
    UseQueue,
    UseShow,
    UseStorage,
    UseTransitions,
)
from service.jobs.store import read_cursor, write_cursor
from service.jobs.views import JobPage, JobView
from service.problems import outcome_if_unavailable
from service.responses import JOB_EXAMPLE, failures, header, success
from service.routes.answers import check_size, download_name, job_response, whole_picture

router = APIRouter()

JobId = Annotated[str, Path(description="The job's id.")]


@router.get("/jobs", operation_id="list_jobs", responses=failures(401, 403, 422, 503))
async def list_jobs(
    caller: MayRead,
    jobs: UseJobs,
    show: UseShow,
    base_url: BaseUrl,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(description="From `next` of the previous page.")] = None,
) -> JobPage:
    """Your jobs, newest first."""
    before = None if cursor is None else read_cursor(cursor)
    page, last = await jobs.page(caller.owner, before=before, limit=limit)
    following = None
    if last is not None:
        following = f"{base_url}jobs?limit={limit}&cursor={write_cursor(last)}"
    return JobPage(jobs=[await show(found) for found in page], next=following)


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
async def get_job(caller: MayRead, jobs: UseJobs, show: UseShow, job_id: JobId) -> Response:
    """The current state of a job."""
    return job_response(await show(await jobs.get(job_id, caller.owner)))


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    responses={
        200: success("The current state of the job.", JobView, example=JOB_EXAMPLE),
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def cancel_job(
    caller: MayManage, jobs: UseJobs, queue: UseQueue, show: UseShow, job_id: JobId
) -> Response:
    """Cancel a job. A job that has already ended stays as it is."""
    if not (await jobs.status(job_id, caller.owner)).is_terminal:
        with outcome_if_unavailable("the job may be canceled; check its status"):
            await queue.cancel(job_id)
    return job_response(await show(await jobs.get(job_id, caller.owner)))


@router.delete(
    "/jobs/{job_id}",
    operation_id="delete_job",
    status_code=204,
    responses={
        204: success("The job is deleted."),
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def delete_job(
    caller: MayManage,
    jobs: UseJobs,
    queue: UseQueue,
    storage: UseStorage,
    transitions: UseTransitions,
    job_id: JobId,
) -> Response:
    """Delete a job immediately: its record, its events, its uploads and its pictures.

    Cached embeddings of image prompts and texts stay for a time that the operator sets; they are
    shared by all jobs and are stored under a hash.
    """
    await jobs.status(job_id, caller.owner)
    with outcome_if_unavailable("the job may be canceled; delete it again"):
        # Its worker sees the cancellation and stops before the record is gone.
        await to_thread.run_sync(transitions.cancel, job_id)
    with outcome_if_unavailable("the job has ended but is not deleted completely; delete it again"):
        await queue.forget(job_id)
        for folder in (f"uploads/{job_id}", f"results/{job_id}"):
            await to_thread.run_sync(storage.delete_folder, folder)
        await to_thread.run_sync(transitions.erase, job_id, caller.owner)
    return Response(status_code=204)


@router.get(
    "/jobs/{job_id}/images/{number}",
    operation_id="get_image",
    response_class=Response,
    responses={
        200: success(
            "The picture; its metadata contain the parameters of the job.",
            headers={"ETag": "The picture's SHA-256.", "Content-Disposition": "Its file name."},
            binary=tuple(one.content_type for one in OutputFormat),
        ),
        304: success("The picture is the one that `If-None-Match` names."),
        307: success("The storage serves the picture.", headers={"Location": "A presigned URL."}),
        **failures(401, 403, 404, 410, 422, 503),
    },
    openapi_extra={"parameters": [header("If-None-Match", "ETag of a cached picture.", '"cdcd"')]},
)
async def get_image(
    caller: MayReadBySignature,
    jobs: UseJobs,
    storage: UseStorage,
    job_id: JobId,
    number: Annotated[int, Path(ge=0, le=MAX_IMAGES_PER_JOB - 1, description="From 0.")],
    *,
    if_none_match: Annotated[str, Header(include_in_schema=False)] = "",
    redirect: Annotated[
        bool, Query(description="`false`: the picture itself, wherever it is stored.")
    ] = True,
) -> Response:
    """A finished picture, or a redirect to the storage."""
    job = (await jobs.get(job_id, caller.owner)).job
    if number >= len(job.images):
        state = "" if job.status is Status.SUCCEEDED else f"; the job is {job.status.value}"
        raise NotFound(f"The job has no picture {number}{state}")
    name = download_name(job, number)
    return await _picture(storage, job.images[number], name, if_none_match, redirect=redirect)


@router.get(
    "/jobs/{job_id}/maps/{number}",
    operation_id="get_map",
    response_class=Response,
    responses={
        200: success(
            "The control map.",
            headers={"ETag": "The map's SHA-256.", "Content-Disposition": "Its file name."},
            binary=("image/png",),
        ),
        304: success("The map is the one that `If-None-Match` names."),
        307: success("The storage serves the map.", headers={"Location": "A presigned URL."}),
        **failures(401, 403, 404, 410, 422, 503),
    },
)
async def get_map(
    caller: MayReadBySignature,
    jobs: UseJobs,
    storage: UseStorage,
    job_id: JobId,
    number: Annotated[int, Path(ge=0, le=MAX_CONTROL_MAPS - 1, description="From 0.")],
    *,
    if_none_match: Annotated[str, Header(include_in_schema=False)] = "",
    redirect: Annotated[
        bool, Query(description="`false`: the map itself, wherever it is stored.")
    ] = True,
) -> Response:
    """A control map that the service made of a picture, or a redirect to the storage."""
    job = (await jobs.get(job_id, caller.owner)).job
    if number >= len(job.maps):
        raise NotFound(f"The job has no map {number}")
    name = f"{job.id}-map-{number}.png"
    return await _picture(storage, job.maps[number], name, if_none_match, redirect=redirect)


async def _picture(
    storage: Storage, image: StoredImage, name: str, if_none_match: str, *, redirect: bool
) -> Response:
    """A stored picture, or a redirect to it where the storage serves it."""
    if storage.signs and redirect:
        await check_size(storage, image)
        url = await to_thread.run_sync(storage.sign, image.key)
        return RedirectResponse(url, status_code=307)
    etag = f'"{image.sha256}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=3600, immutable",
        "Content-Disposition": f'inline; filename="{name}"',
    }
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if not known.isdisjoint({etag, "*"}):
        return Response(status_code=304, headers=headers)
    data = await whole_picture(storage, image)
    return Response(data, media_type=image.content_type, headers=headers)
