"""Hugging Face's inference API: `POST /hf/{model}`, for `huggingface_hub.InferenceClient`.

Its calls `text_to_image` and `image_to_image` are answered with the bytes of one picture; the image
is the image prompt. A body is the image file itself, or JSON with `inputs` (a prompt, or an image
in base64) and `parameters`, which may have the fields of `POST /generate` too. Source: the requests
that the package huggingface_hub 2.4 sends.
"""

import base64
import binascii
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.core.errors import FieldError, InvalidField, MalformedBody
from service.core.params import GenerateRequest
from service.dependencies import (
    BaseUrl,
    MayGenerate,
    UseEventStreams,
    UseJobs,
    UseReceiveBytes,
    UseShare,
    UseStorage,
    UseSubmit,
)
from service.routes.answers import check_free_slot, succeeded_job, whole_picture
from service.submission.form import Form, Upload
from service.submission.submit import read_origin

router = APIRouter(include_in_schema=False)

_IMAGE_STARTS: Final = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")
_HEAD_DIGITS: Final = 32


def translate(content_type: str, body: bytes, model: str) -> Form:
    """The form of `POST /generate` that asks for the same.

    Raises `MalformedBody` or `InvalidField`.
    """
    values: dict[str, Any] = {"model": model, "num_images": 1}
    if not content_type.startswith("application/json"):
        return _form(values, body)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedBody("The body is not well-formed JSON") from None
    inputs, given = _read(content)
    given |= given.pop("target_size", None) or {}
    if "num_inference_steps" in given:
        given["steps"] = given.pop("num_inference_steps")
    values |= {name: value for name, value in given.items() if value is not None}
    image = _image(inputs)
    if image is None:
        return _form({"prompt": inputs, **values}, None)
    return _form(values, image)


def _read(content: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(content, dict):
        raise MalformedBody("The body must be one JSON object")
    inputs, given = content.get("inputs"), content.get("parameters") or {}
    if not isinstance(inputs, str):
        raise InvalidField.of(FieldError("inputs", "must be a prompt, or an image in base64"))
    if not isinstance(given, dict) or not isinstance(given.get("target_size") or {}, dict):
        raise InvalidField.of(FieldError("parameters", "must be an object"))
    return inputs, dict(given)


def _image(inputs: str) -> bytes | None:
    """The image file that `inputs` is; `None` where it is a prompt."""
    try:
        head = base64.b64decode(inputs[:_HEAD_DIGITS], validate=True)
    except (ValueError, binascii.Error):
        return None
    if not head.startswith(_IMAGE_STARTS) and head[4:8] != b"ftyp":
        return None
    try:
        return base64.b64decode(inputs, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidField.of(FieldError("inputs", "is not valid base64")) from None


def _form(values: dict[str, Any], image: bytes | None) -> Form:
    form = Form(GenerateRequest, values, is_json=True)
    if image is not None:
        digest = hashlib.sha256(image).hexdigest()
        form.files["image"] = [Upload("image", io.BytesIO(image), len(image), digest)]
        form.size_bytes = len(image)
    return form


@router.post("/hf/{model}", operation_id="huggingface_infer")
async def infer(
    request: Request,
    model: str,
    caller: MayGenerate,
    share: UseShare,
    base_url: BaseUrl,
    receive_bytes: UseReceiveBytes,
    submit: UseSubmit,
    jobs: UseJobs,
    event_streams: UseEventStreams,
    storage: UseStorage,
) -> Response:
    """Make one picture and respond with its bytes."""
    check_free_slot(event_streams, share(caller))

    @asynccontextmanager
    async def body() -> AsyncIterator[Form]:
        async with receive_bytes() as received:
            with translate(request.headers.get("content-type", ""), received, model) as form:
                yield form

    submission = await submit(body(), read_origin(request.headers, base_url), requires_images=False)
    found = await succeeded_job(
        event_streams, jobs, submission.job_id, owner=caller.owner, share=share(caller)
    )
    image = found.job.images[0]
    headers = {
        **submission.headers,
        "X-Job-Id": submission.job_id,
        "X-Seed": str(image.seed),
    }
    data = await whole_picture(storage, image)
    return Response(data, media_type=image.content_type, headers=headers)
