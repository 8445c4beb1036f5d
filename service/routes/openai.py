"""OpenAI's images API: `/v1/images/generations`, `/v1/images/edits` and `/v1/models`.

A translation to the submission of `POST /generate`, whose own field names are accepted beside
OpenAI's. What has no meaning here (`quality`, `style`, `background` and the like) is accepted and
ignored. Source: the requests that the package openai 3.57 sends.
"""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from service.core.errors import FieldError, InvalidField, ServiceError
from service.core.job import EventName, Job, StoredImage
from service.core.param_types import StoredUpload
from service.core.params import GenerateRequest
from service.core.schema import Files, marked, take_alias, values_of
from service.core.storage import Storage
from service.dependencies import (
    BaseUrl,
    MayGenerate,
    UseAuthenticator,
    UseCatalog,
    UseEventStreams,
    UseJobs,
    UseReceive,
    UseShare,
    UseShow,
    UseStorage,
    UseSubmit,
)
from service.jobs.event_stream import Check, EventStreams
from service.jobs.store import JobStore
from service.problems import Problem
from service.routes.answers import check_free_slot, succeeded_job, whole_picture
from service.submission.form import Form, with_files
from service.submission.submit import read_origin

router = APIRouter(include_in_schema=False)

OWNER: Final = "imageprompt"
PREVIEW_STEPS: Final = 2
"""Steps between partial images, of which the first ones are sent."""
HEARTBEAT: Final = ": heartbeat\n\n"
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ImagesRequest(GenerateRequest):
    """A body of OpenAI's images API, with the fields of `POST /generate` beside its own."""

    image: Annotated[tuple[StoredUpload, ...], Files(at_most=8)] = ()
    image_url: Annotated[tuple[StoredUpload, ...], Files(at_most=8)] = ()
    mask: Annotated[tuple[StoredUpload, ...], Files()] = ()
    n: Annotated[int, Field(ge=1, le=4)] = 1
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] = "auto"
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    background: str | None = None
    input_fidelity: str | None = None
    moderation: str | None = None
    output_compression: int | None = None
    quality: str | None = None
    safety_identifier: str | None = None
    style: str | None = None
    user: str | None = None


def translate(form: Form, sent: BaseModel) -> Form:
    """The form of `POST /generate` that asks for the same. Raises `InvalidField`."""
    asked = {name: getattr(sent, name) for name in sent.model_fields_set}
    values = values_of(GenerateRequest, sent)
    take_alias(values, "num_images", "n", asked.get("n"))
    take_alias(values, "steps", "num_inference_steps", asked.get("num_inference_steps"))
    if asked.get("stream") and asked.get("partial_images"):
        values.setdefault("preview_every", PREVIEW_STEPS)
    if asked.get("size", "auto") != "auto":
        for name, pixels in zip(("width", "height"), asked["size"].split("x"), strict=True):
            take_alias(values, name, "size", int(pixels))
    files = dict(form.files)
    files = with_files(files, "image", files.pop("image_url", ()))
    masks = files.pop("mask", None)
    if masks is not None:
        if "mask_image" not in marked(GenerateRequest, Files):
            raise InvalidField.of(FieldError("mask", "is not supported"))
        if "image" not in files:
            raise InvalidField.of(FieldError("mask", "can only be sent with image"))
        if twice := {"init_image", "mask_image"} & files.keys():
            raise InvalidField.of(FieldError("mask", f"cannot be sent with {min(twice)}"))
        files |= {"init_image": files["image"][:1], "mask_image": masks}
    return Form(GenerateRequest, values, is_json=True, files=files, size_bytes=form.size_bytes)


def render_error(problem: Problem) -> Response:
    """An error as OpenAI's clients read it; a wrong field is status 400 for them."""
    is_ours = problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = _TYPES.get(problem.status, "server_error" if is_ours else "invalid_request_error")
    status = 400 if problem.status == HTTPStatus.UNPROCESSABLE_ENTITY else problem.status
    field = problem.errors[0].field if problem.errors else None
    error = _error(problem.detail, kind, problem.type.rpartition(":")[2], field)
    headers = {"x-should-retry": "false"} if status == HTTPStatus.CONFLICT else None
    return JSONResponse({"error": error}, status, headers=headers)


def _error(message: str, kind: str, code: str, field: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": field, "code": code}


@router.post("/v1/images/generations", operation_id="openai_generate")
@router.post("/v1/images/edits", operation_id="openai_edit")
async def create_images(
    request: Request,
    caller: MayGenerate,
    share: UseShare,
    base_url: BaseUrl,
    receive: UseReceive,
    submit: UseSubmit,
    jobs: UseJobs,
    event_streams: UseEventStreams,
    storage: UseStorage,
    show: UseShow,
    authenticator: UseAuthenticator,
) -> Response:
    """Make pictures of image prompts, of a text, or of both, and respond with them."""
    check_free_slot(event_streams, share(caller))
    options: list[Any] = []

    @asynccontextmanager
    async def body() -> AsyncIterator[Form]:
        async with receive(ImagesRequest) as form:
            options.append(form.parse())
            yield translate(form, options[0])

    submission = await submit(body(), read_origin(request.headers, base_url), requires_images=False)
    headers = {**submission.headers, "X-Job-Id": submission.job_id}
    job_id, sent = submission.job_id, options[0]
    check = partial(authenticator.check, caller)
    if sent.stream:
        kind = "image_edit" if request.url.path.endswith("edits") else "image_generation"
        pictures = _Pictures(
            job_id, caller.owner, share(caller), check, event_streams, jobs, storage
        )
        events = pictures.stream(kind, partial_images=sent.partial_images)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    found = await succeeded_job(
        event_streams, jobs, job_id, owner=caller.owner, share=share(caller), check=check
    )
    if sent.response_format == "url":
        shown = await show(found)
        data = [{"url": image.url, "seed": image.seed} for image in shown.images]
    else:
        data = [
            {"b64_json": await _base64(storage, image), "seed": image.seed}
            for image in found.job.images
        ]
    content = {"created": int(found.job.created_at), "id": job_id, "data": data}
    return JSONResponse(content | _described(found.job), headers=headers)


@router.get("/v1/models", operation_id="openai_models")
async def list_models(catalog: UseCatalog) -> dict[str, Any]:
    """The models that are served, as OpenAI lists them."""
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": OWNER} for name in catalog.models
    ]
    return {"object": "list", "data": models}


async def _base64(storage: Storage, image: StoredImage) -> str:
    return base64.b64encode(await whole_picture(storage, image)).decode()


def _described(job: Job) -> dict[str, Any]:
    """What a response and the events of a stream say of the pictures."""
    request = job.request
    return {
        "size": f"{request.width}x{request.height}",
        "output_format": request.output_format.value,
        "quality": "auto",
        "background": "opaque",
    }


class _Pictures:
    """The pictures of one job as server-sent events."""

    def __init__(
        self,
        job_id: str,
        owner: str,
        share: str,
        check: Check,
        event_streams: EventStreams,
        jobs: JobStore,
        storage: Storage,
    ) -> None:
        self._job_id = job_id
        self._owner = owner
        self._share = share
        self._check = check
        self._event_streams = event_streams
        self._jobs = jobs
        self._storage = storage

    async def stream(self, kind: str, *, partial_images: int) -> AsyncIterator[str]:
        """Previews while the job runs, at most `partial_images`, then every finished picture."""
        job, drawn = (await self._jobs.get(self._job_id, self._owner)).job, 0
        try:
            with self._event_streams.subscriber_slot(self._share, self._job_id) as has_slot:
                async for event in self._event_streams.events(self._job_id):
                    if not has_slot:
                        break  # as for a request that is not streamed, the next wait tells
                    await self._check()
                    if event is None:
                        yield HEARTBEAT
                    elif event.name == EventName.PREVIEW and drawn < partial_images:
                        part = json.loads(event.data)["data"]
                        yield _event(job, f"{kind}.partial_image", part, partial_image_index=drawn)
                        drawn += 1
            found = await succeeded_job(
                self._event_streams,
                self._jobs,
                self._job_id,
                owner=self._owner,
                share=self._share,
                check=self._check,
            )
        except ServiceError as error:
            kind_of_error = _TYPES.get(error.status, "server_error")
            content = {"error": _error(error.detail, kind_of_error, error.code)}
            yield f"event: error\ndata: {json.dumps(content)}\n\n"
            return
        for image in found.job.images:
            picture = await _base64(self._storage, image)
            yield _event(found.job, f"{kind}.completed", picture, seed=image.seed or 0)
        yield "data: [DONE]\n\n"


def _event(job: Job, name: str, picture: str, **more: int) -> str:
    content = {"type": name, "b64_json": picture, "created_at": int(job.created_at), **more}
    return f"event: {name}\ndata: {json.dumps(content | _described(job))}\n\n"
