"""Hugging Face's inference API: `POST /hf/{model}`, for `huggingface_hub.InferenceClient`.

Its calls `text_to_image` and `image_to_image` are answered with the bytes of one picture; the image
is the image prompt. A body is the image file itself, or JSON with `inputs` (a prompt, or an image
in base64) and `parameters`, which may have the fields of `POST /generate` too. Source: the requests
that the package huggingface_hub 2.4 sends.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from service.core.errors import FieldError, InvalidField
from service.core.param_types import StoredUpload
from service.core.params import GenerateRequest
from service.core.schema import Files, take_alias, values_of
from service.dependencies import (
    BaseUrl,
    MayGenerate,
    UseAuthenticator,
    UseEventStreams,
    UseJobs,
    UseReceive,
    UseShare,
    UseStorage,
    UseSubmit,
)
from service.routes.answers import check_free_slot, succeeded_job, whole_picture
from service.submission.form import Form, with_files
from service.submission.submit import read_origin

router = APIRouter(include_in_schema=False)


class TargetSize(BaseModel):
    """`target_size`: width and height in an object of their own."""

    model_config = ConfigDict(strict=True, extra="forbid")

    width: int | None = None
    height: int | None = None


class InferenceRequest(GenerateRequest):
    """A body of Hugging Face's API; the fields of `POST /generate` are in its `parameters`."""

    image: Annotated[tuple[StoredUpload, ...], Files(at_most=8)] = ()
    inputs: Annotated[tuple[StoredUpload, ...], Files(or_text="prompt")] = ()
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    target_size: TargetSize | None = None


def translate(form: Form, sent: Any, model: str) -> Form:
    """The form of `POST /generate` that asks for the same. Raises `InvalidField`."""
    values = values_of(GenerateRequest, sent)
    files = dict(form.files)
    inputs = files.pop("inputs", [])
    if not inputs and "prompt" not in values:
        raise InvalidField.of(FieldError("inputs", "must be a prompt, or an image in base64"))
    if values.setdefault("num_images", 1) != 1:
        raise InvalidField.of(FieldError("num_images", "must be 1: the answer is one picture"))
    take_alias(values, "model", "the path", model)
    take_alias(values, "steps", "num_inference_steps", sent.num_inference_steps)
    if sent.target_size is not None:
        for name, pixels in sent.target_size:
            take_alias(values, name, "target_size", pixels)
    files = with_files(files, "image", inputs)
    return Form(GenerateRequest, values, is_json=True, files=files, size_bytes=form.size_bytes)


@router.post("/hf/{model}", operation_id="huggingface_infer")
async def infer(
    request: Request,
    model: str,
    caller: MayGenerate,
    share: UseShare,
    base_url: BaseUrl,
    receive: UseReceive,
    submit: UseSubmit,
    jobs: UseJobs,
    event_streams: UseEventStreams,
    storage: UseStorage,
    authenticator: UseAuthenticator,
) -> Response:
    """Make one picture and respond with its bytes."""
    check_free_slot(event_streams, share(caller))

    @asynccontextmanager
    async def body() -> AsyncIterator[Form]:
        async with receive(InferenceRequest, inside="parameters", raw="inputs") as form:
            yield translate(form, form.parse(), model)

    submission = await submit(body(), read_origin(request.headers, base_url), requires_images=False)
    found = await succeeded_job(
        event_streams,
        jobs,
        submission.job_id,
        owner=caller.owner,
        share=share(caller),
        check=partial(authenticator.check, caller),
    )
    image = found.job.images[0]
    headers = {
        **submission.headers,
        "X-Job-Id": submission.job_id,
        "X-Seed": str(image.seed),
    }
    data = await whole_picture(storage, image)
    return Response(data, media_type=image.content_type, headers=headers)
