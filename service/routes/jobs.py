"""The job resource: get, list, cancel, delete, and its pictures."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import RedirectResponse, Response

from service.api_keys import Scope
from service.core.errors import NotFound
from service.core.job import EventName, Status, StoredImage
from service.core.param_types import MAX_CONTROL_MAPS, MAX_IMAGES_PER_JOB, OutputFormat
from service.core.schema import PLAIN_NUMBER
from service.core.storage import Storage
from service.dependencies import (
    BaseUrl,
    MayManage,
    MayRead,
    MayReadBySignature,
    Services,
    UseJobs,
    UseQueue,
    UseShow,
    UseStorage,
    UseTransitions,
    authorize,
    base_url_of,
    share_of,
)
from service.jobs.event_stream import Event
from service.jobs.queue import JobQueue
from service.jobs.store import FoundJob, JobRecord, JobStore, read_cursor, write_cursor
from service.jobs.views import JobPage, JobView, RenderedJob
from service.problems import outcome_if_unavailable
from service.responses import JOB_EXAMPLE, failures, header, success
from service.routes.answers import (
    DirectRoute,
    check_size,
    download_name,
    is_known,
    job_response,
    poll_again,
    shown_jobs,
    unless_hung_up,
    whole_picture,
)
from service.submission.preferences import read_prefer

router = APIRouter()


polls = APIRouter(route_class=DirectRoute)
JobId = Annotated[str, Path(description="The job's id.")]


@router.get("/jobs", operation_id="list_jobs", responses=failures(401, 403, 422, 503))
async def list_jobs(
    caller: MayRead,
    jobs: UseJobs,
    show: UseShow,
    base_url: BaseUrl,
    limit: Annotated[int, Query(ge=1, le=100), PLAIN_NUMBER] = 20,
    cursor: Annotated[str | None, Query(description="From `next` of the previous page.")] = None,
) -> JobPage:
    """Your jobs, newest first."""
    before = None if cursor is None else read_cursor(cursor)
    page, last = await jobs.page(caller.owner, before=before, limit=limit)
    following = None
    if last is not None:
        following = f"{base_url}jobs?limit={limit}&cursor={write_cursor(last)}"
    return JobPage(jobs=await shown_jobs(page, show), next=following)


@polls.get(
    "/jobs/{job_id}",
    operation_id="get_job",
    responses={
        200: success(
            "The job.",
            JobView,
            example=JOB_EXAMPLE,
            headers={
                "ETag": "Weak: of everything but `eta_seconds`.",
                "Retry-After": "While it is not final: seconds after which to ask again.",
                "Preference-Applied": "What was done of `Prefer`.",
            },
        ),
        304: success(
            "The job is the one that `If-None-Match` names.",
            headers={"Retry-After": "As above.", "Preference-Applied": "As above."},
        ),
        **failures(401, 403, 404, 410, 422, 503),
    },
    openapi_extra={
        "parameters": [
            header(
                "Prefer",
                "`wait=N` holds the answer up to N (at most 60) seconds until the job has ended; "
                "with `If-None-Match`, until it is another one than that (RFC 7240).",
                "wait=30",
            ),
            header("If-None-Match", "ETag of an earlier answer.", 'W/"c0ffee"'),
        ]
    },
)
async def get_job(request: Request, job_id: JobId) -> Response:
    """The current state of a job."""
    services: Services = request.state.services
    views, base, headers = services.views, base_url_of(request), request.headers
    caller = await authorize(services.authenticator, headers, Scope.READ)
    record = await services.jobs.record(job_id, caller.owner)
    job = await views.render(record, base=base)
    known = headers.get("if-none-match")
    answered: dict[str, str] = {}
    wait_seconds = read_prefer(headers.getlist("prefer")).wait_seconds if "prefer" in headers else 0
    if wait_seconds and not _is_awaited(record, job, known):
        event_streams = services.event_streams
        after = await event_streams.last_id(job_id)

        async def is_over(event: Event | None) -> bool:
            nonlocal record, job
            if known is None and event is not None and event.name != EventName.DONE:
                return False
            record = await services.jobs.record(job_id, caller.owner)
            job = await views.render(record, base=base)
            return _is_awaited(record, job, known)

        owner = share_of(request, caller)
        check = partial(services.authenticator.check, caller)
        held = event_streams.wait_until(
            is_over, job_id, wait_seconds, owner=owner, check=check, after=after
        )
        waited = await unless_hung_up(request, held)
        if waited is not None:
            answered["Preference-Applied"] = f"wait={wait_seconds}"
    answered["ETag"] = job.etag
    eta_seconds = await views.eta_seconds(record)
    if not record.is_terminal:
        answered |= poll_again(eta_seconds)
    if known is not None and is_known(job.etag, known):
        return Response(status_code=304, headers=answered)
    return Response(job.body(eta_seconds), media_type="application/json", headers=answered)


def _is_awaited(record: JobRecord, job: RenderedJob, known: str | None) -> bool:
    """Whether a request that waits is to be answered."""
    return record.is_terminal or (known is not None and not is_known(job.etag, known))


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
    return job_response(await show(await end_job(jobs, queue, job_id, caller.owner)))


async def end_job(jobs: JobStore, queue: JobQueue, job_id: str, owner: str) -> FoundJob:
    """Cancel a job unless it has ended, and return it. Raises `NotFound` and `Gone`."""
    if not (await jobs.status(job_id, owner)).is_terminal:
        with outcome_if_unavailable("the job may be canceled; check its status"):
            await queue.cancel(job_id)
    return await jobs.get(job_id, owner)


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
    number: Annotated[
        int, Path(ge=0, le=MAX_IMAGES_PER_JOB - 1, description="From 0."), PLAIN_NUMBER
    ],
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
    number: Annotated[
        int, Path(ge=0, le=MAX_CONTROL_MAPS - 1, description="From 0."), PLAIN_NUMBER
    ],
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
    if is_known(etag, if_none_match):
        return Response(status_code=304, headers=headers)
    data = await whole_picture(storage, image)
    return Response(data, media_type=image.content_type, headers=headers)
