"""Replicate's HTTP API: predictions and models under `/v1`.

A translation to the submission of `POST /generate`, whose field names are those of `input`. Every
served model is `imageprompt/NAME`. Source: the requests that the package replicate 1.0 sends.
"""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from service.core.catalog import Catalog
from service.core.errors import FieldError, Gone, InvalidField, NotFound
from service.core.job import EventName, Job, Status
from service.core.param_types import HttpsUrl, StoredUpload
from service.core.params import GenerateRequest
from service.core.schema import PLAIN_NUMBER, Files, sent_model, take_alias, values_of
from service.core.storage import Storage, StorageError
from service.dependencies import (
    BaseUrl,
    MayGenerate,
    MayManage,
    MayRead,
    UseAuthenticator,
    UseCatalog,
    UseEventStreams,
    UseJobs,
    UseQueue,
    UseReceive,
    UseShare,
    UseShow,
    UseStorage,
    UseSubmit,
)
from service.jobs.event_stream import Event
from service.jobs.store import FoundJob, read_cursor, write_cursor
from service.jobs.views import JobView, job_view
from service.openapi import json_schema
from service.responses import REFERENCE
from service.routes.answers import shown_jobs, stored_job, whole_picture
from service.routes.events import LastEventId, Subscription, stream, subscribe
from service.routes.jobs import JobId, end_job
from service.signed_urls import Signer
from service.submission.form import Form, with_files
from service.submission.preferences import read_prefer
from service.submission.submit import read_origin

router = APIRouter(include_in_schema=False)

OWNER: Final = "imageprompt"
PAYLOAD: Final = "replicate"
"""Name of the webhook payload of predictions."""
WAIT_SHARE: Final = 0.95
"""Of the seconds that the client wants to wait: half a second later it hangs up."""
COG_VERSION: Final = "0.9.26"
"""Clients read from it how to read `openapi_schema`."""
_EPOCH: Final = "1970-01-01T00:00:00Z"
_BAR: Final = 10
_STATUSES: Final = {Status.QUEUED: "starting", Status.EXPIRED: "failed"}


class PredictionRequest(GenerateRequest):
    """A body of Replicate's API; the fields of `POST /generate` are in its `input`."""

    image: Annotated[tuple[StoredUpload, ...], Files(at_most=8)] = ()
    image_url: Annotated[tuple[StoredUpload, ...], Files(at_most=8)] = ()
    num_outputs: Annotated[int, Field(ge=1, le=4)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    version: str | None = None
    webhook: HttpsUrl | None = None
    webhook_completed: HttpsUrl | None = None
    webhook_events_filter: tuple[Literal["start", "output", "logs", "completed"], ...] = ()
    stream: bool | None = None


def translate(form: Form, sent: Any, model: str) -> Form:
    """The form of `POST /generate` that asks for the same."""
    values = values_of(GenerateRequest, sent)
    take_alias(values, "model", "version", model)
    take_alias(values, "num_images", "num_outputs", sent.num_outputs)
    take_alias(values, "steps", "num_inference_steps", sent.num_inference_steps)
    take_alias(values, "webhook_url", "webhook", sent.webhook)
    take_alias(values, "webhook_url", "webhook_completed", sent.webhook_completed)
    events = sent.webhook_events_filter
    if "webhook_url" in values and set(events) == {"logs"}:
        message = "must have an event beside 'logs', of which no webhook is sent"
        raise InvalidField.of(FieldError("webhook_events_filter", message))
    files = dict(form.files)
    files = with_files(files, "image", files.pop("image_url", ()))
    return Form(
        GenerateRequest,
        values,
        is_json=True,
        files=files,
        size_bytes=form.size_bytes,
        webhook_events=events,
    )


def version_of(catalog: Catalog, model: str) -> str:
    """The id of a model's version: it changes with the weights that are served."""
    entry = catalog.models.get(model)
    parts = {} if entry is None else entry.parts()
    names = {
        name: [part.path.name if part.path else part.repo, part.revision]
        for name, part in parts.items()
    }
    return hashlib.sha256(json.dumps([model, names]).encode()).hexdigest()


def _named_model(catalog: Catalog, owner: str, name: str) -> str:
    if owner != OWNER or name not in catalog.models:
        raise NotFound(f"There is no model {owner}/{name}; models are {OWNER}/NAME of GET /models")
    return name


def _model_of(catalog: Catalog, version: str | None) -> str:
    """The model behind a version's id, or `owner/name` with or without one."""
    place, _, given = (version or "").rpartition(":")
    for name in catalog.models:
        own = f"{OWNER}/{name}"
        if given == own or (given == version_of(catalog, name) and place in ("", own)):
            return name
    raise InvalidField.of(FieldError("version", "is not served; see /v1/models/OWNER/NAME"))


def _prediction(
    view: JobView, catalog: Catalog, base: str, output: list[str] | None
) -> dict[str, Any]:
    model = view.input["model"]
    url = f"{base}v1/predictions/{view.id}"
    error = view.error.detail if view.error else None
    if view.status is Status.EXPIRED:
        error = error or "The job expired before a worker was free"
    step, total = view.progress.step, view.progress.total
    return {
        "id": view.id,
        "model": f"{OWNER}/{model}",
        "version": version_of(catalog, model),
        "status": _STATUSES.get(view.status, view.status.value),
        "input": view.input,
        "output": output or None,
        "logs": _progress(step, total) if step else "",
        "error": error,
        "metrics": {"predict_time": view.metrics.total_seconds, **view.metrics.model_dump()},
        **view.model_dump(mode="json", include={"created_at", "started_at", "completed_at"}),
        "urls": {"get": url, "cancel": f"{url}/cancel", "stream": f"{url}/stream"},
    }


def _progress(step: int, total: int) -> str:
    """A line as tqdm writes it, from which clients read the progress."""
    done = min(1.0, step / max(total, 1))
    return f"{done:4.0%}|{'#' * round(_BAR * done):-<{_BAR}}| {step}/{total}\n"


def _urls(view: JobView) -> list[str]:
    """Where the pictures are. Clients follow no redirect, so the service itself sends them."""
    return [f"{one.url}{'&' if '?' in one.url else '?'}redirect=false" for one in view.images]


async def _output(found: FoundJob, view: JobView, storage: Storage, base: str) -> list[str]:
    """The pictures: their URLs, or `data:` URIs on http, where clients wrap no URL as a file."""
    if base.startswith("https:"):
        return _urls(view)
    try:
        return [
            f"data:{image.content_type};base64,"
            + base64.b64encode(await whole_picture(storage, image)).decode()
            for image in found.job.images
        ]
    except (Gone, StorageError):
        return _urls(view)


def webhook_payload(catalog: Catalog) -> Callable[[Job, str, Signer | None], str]:
    """Makes the body of a prediction's webhook."""

    def payload(job: Job, base: str, signer: Signer | None) -> str:
        view = job_view(job, base=base, ahead=None, eta_seconds=None, signer=signer)
        return json.dumps(_prediction(view, catalog, base, _urls(view)))

    return payload


async def _render(
    catalog: UseCatalog, show: UseShow, storage: UseStorage, base_url: BaseUrl
) -> Callable[..., Any]:
    async def render(found: FoundJob, *, inline: bool = True) -> dict[str, Any]:
        view = await show(found)
        output = await _output(found, view, storage, base_url) if inline else _urls(view)
        return _prediction(view, catalog, base_url, output)

    return render


UseRender = Annotated[Callable[..., Any], Depends(_render)]


@router.post("/v1/predictions", operation_id="replicate_create")
@router.post("/v1/models/{owner}/{name}/predictions", operation_id="replicate_create_of_model")
async def create_prediction(
    request: Request,
    caller: MayGenerate,
    share: UseShare,
    base_url: BaseUrl,
    receive: UseReceive,
    submit: UseSubmit,
    jobs: UseJobs,
    event_streams: UseEventStreams,
    catalog: UseCatalog,
    render: UseRender,
    authenticator: UseAuthenticator,
) -> Response:
    """Queue a job; with `Prefer: wait`, respond when it has ended or the time is up."""
    place = request.path_params
    model = _named_model(catalog, place["owner"], place["name"]) if "owner" in place else None

    @asynccontextmanager
    async def body() -> AsyncIterator[Form]:
        async with receive(PredictionRequest, inside="input") as form:
            sent: Any = form.parse()
            named = model if sent.version is None else _model_of(catalog, sent.version)
            if model not in (None, named):
                raise InvalidField.of(FieldError("version", f"is not one of {model}"))
            yield translate(form, sent, named or _model_of(catalog, None))

    wait = read_prefer(request.headers.getlist("prefer")).wait_seconds
    origin = read_origin(request.headers, base_url, webhook_payload=PAYLOAD)
    submission = await submit(body(), origin, requires_images=False)
    if wait:
        check = partial(authenticator.check, caller)
        seconds = WAIT_SHARE * wait
        await event_streams.wait(submission.job_id, seconds, owner=share(caller), check=check)
    prediction = await render(await stored_job(jobs, submission.job_id, caller.owner))
    if prediction["status"] == Status.PROCESSING:
        prediction["status"] = "starting"  # clients take every other status for the last one
    return JSONResponse(prediction, 201, headers=dict(submission.headers))


@router.get("/v1/predictions", operation_id="replicate_list")
async def list_predictions(
    caller: MayRead,
    jobs: UseJobs,
    render: UseRender,
    base_url: BaseUrl,
    limit: Annotated[int, Query(ge=1, le=100), PLAIN_NUMBER] = 100,
    cursor: Annotated[str | None, Query()] = None,
) -> dict[str, Any]:
    """Your predictions, newest first; pictures are URLs here."""
    before = None if cursor is None else read_cursor(cursor)
    page, last = await jobs.page(caller.owner, before=before, limit=limit)
    following = None
    if last is not None:
        following = f"{base_url}v1/predictions?limit={limit}&cursor={write_cursor(last)}"
    results = await shown_jobs(page, partial(render, inline=False))
    return page_of(results, following)


def page_of(results: list[dict[str, Any]], following: str | None = None) -> dict[str, Any]:
    """A page of a list, with the URL of the next one."""
    return {"previous": None, "next": following, "results": results}


@router.get("/v1/predictions/{job_id}", operation_id="replicate_get")
async def get_prediction(
    caller: MayRead, jobs: UseJobs, render: UseRender, job_id: JobId
) -> dict[str, Any]:
    """A prediction as it stands."""
    prediction: dict[str, Any] = await render(await jobs.get(job_id, caller.owner))
    return prediction


@router.post("/v1/predictions/{job_id}/cancel", operation_id="replicate_cancel")
async def cancel_prediction(
    caller: MayManage, jobs: UseJobs, queue: UseQueue, render: UseRender, job_id: JobId
) -> dict[str, Any]:
    """Cancel a prediction; one that has ended stays as it is."""
    prediction: dict[str, Any] = await render(await end_job(jobs, queue, job_id, caller.owner))
    return prediction


@router.get("/v1/predictions/{job_id}/stream", operation_id="replicate_stream")
async def stream_prediction(
    subscription: Annotated[Subscription, Depends(subscribe)],
    render: UseRender,
    last_event_id: LastEventId = None,
) -> Response:
    """Progress as `logs`, the pictures as `output`, and `done` as the last event."""

    def frame(event: Event) -> str:
        if event.name != EventName.PROGRESS:
            return ""
        progress = json.loads(event.data)
        return _frame("logs", event.id, _progress(progress["step"], progress["total"]).strip())

    async def done(followed: Subscription, last: str) -> str:
        try:
            found = await followed.jobs.get(followed.found.job.id, followed.found.job.owner)
        except (NotFound, Gone):
            return _frame("error", last, "The prediction was deleted")
        prediction = await render(found)
        if prediction["status"] == Status.FAILED:
            return _frame("error", last, prediction["error"] or "The prediction failed")
        pictures = [_frame("output", last, picture) for picture in prediction["output"] or ()]
        is_canceled = prediction["status"] == Status.CANCELED
        reason = json.dumps({"reason": "canceled"} if is_canceled else {})
        return "".join([*pictures, _frame("done", last, reason)])

    return await stream(subscription, last_event_id, frame, done)


def _frame(name: str, event_id: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in data.splitlines())
    return f"id: {event_id}\nevent: {name}\n{lines}\n"


@cache
def openapi_schema() -> dict[str, Any]:
    """What a prediction takes and gives, as Cog describes it."""
    described = {**json_schema(GenerateRequest), "title": "Input"}
    enums = sent_model(GenerateRequest).model_json_schema(ref_template=REFERENCE).get("$defs", {})
    output = {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {},
        "components": {"schemas": {**enums, "Input": described, "Output": output}},
    }


def _version(catalog: Catalog, model: str) -> dict[str, Any]:
    return {
        "id": version_of(catalog, model),
        "created_at": _EPOCH,
        "cog_version": COG_VERSION,
        "openapi_schema": openapi_schema(),
    }


@router.get("/v1/models/{owner}/{name}", operation_id="replicate_model")
async def get_model(
    catalog: UseCatalog, base_url: BaseUrl, owner: str, name: str
) -> dict[str, Any]:
    """A served model."""
    model = _named_model(catalog, owner, name)
    return {
        "url": f"{base_url}v1/models/{owner}/{name}",
        "owner": owner,
        "name": name,
        "description": catalog.models[model].title,
        "visibility": "public",
        "run_count": 0,
        "latest_version": _version(catalog, model),
    }


@router.get("/v1/models/{owner}/{name}/versions", operation_id="replicate_versions")
async def list_versions(catalog: UseCatalog, owner: str, name: str) -> dict[str, Any]:
    """The one version of a served model."""
    return page_of([_version(catalog, _named_model(catalog, owner, name))])


@router.get("/v1/models/{owner}/{name}/versions/{version}", operation_id="replicate_version")
async def get_version(catalog: UseCatalog, owner: str, name: str, version: str) -> dict[str, Any]:
    """That version by its id."""
    found = _version(catalog, _named_model(catalog, owner, name))
    if found["id"] != version:
        raise NotFound(f"{owner}/{name} has no such version; the one that is served is another")
    return found
