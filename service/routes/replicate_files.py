"""Replicate's HTTP API: files that predictions use, and the webhook secret."""

import mimetypes
from typing import Annotated, Any, Final

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.core.errors import FieldError, InvalidField, MalformedBody, NotFound
from service.core.param_types import StoredUpload
from service.core.schema import Files
from service.dependencies import (
    BaseUrl,
    MayGenerate,
    UseFileStore,
    UseReceive,
    UseRedisMonitor,
    UseShare,
)
from service.routes.replicate import page_of
from service.submission.file_store import FileRecord, Metadata
from service.submission.json_body import parse_json_text

router = APIRouter(include_in_schema=False)
_METADATA: Final[TypeAdapter[dict[str, Any]]] = TypeAdapter(Metadata)


class FileRequest(BaseModel):
    """A file that later predictions use."""

    content: Annotated[tuple[StoredUpload, ...], Files(at_least=1)] = ()
    metadata: str = ""


@router.post("/v1/files", status_code=201, operation_id="replicate_create_file")
async def create_file(
    caller: MayGenerate,
    share: UseShare,
    base_url: BaseUrl,
    receive: UseReceive,
    files: UseFileStore,
    redis_monitor: UseRedisMonitor,
) -> dict[str, Any]:
    """Keep a file for an hour, for predictions that name its URL."""
    await redis_monitor.check_room()
    async with receive(FileRequest) as form:
        sent: Any = form.parse()
        if "content" not in form.files:
            raise InvalidField.of(FieldError("content", "is required: send a file"))
        metadata = _metadata(sent.metadata)
        [upload] = form.files["content"]
        record = await files.add(upload, owner=caller.owner, share=share(caller), metadata=metadata)
    return _file(record, base_url)


def _metadata(text: str) -> dict[str, Any]:
    """The object that a text is. Raises `InvalidField`."""
    try:
        return _METADATA.validate_python(parse_json_text((text or "{}").encode()))
    except (MalformedBody, InvalidField, ValidationError):
        message = "must be a JSON object of Unicode text and finite numbers, each name once"
        raise InvalidField.of(FieldError("metadata", message)) from None


def _file(record: FileRecord, base: str) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "content_type": mimetypes.guess_type(record.name)[0] or "application/octet-stream",
        "size": record.size_bytes,
        "etag": record.sha256,
        "checksums": {"sha256": record.sha256},
        "metadata": record.metadata,
        "created_at": record.created_at_text,
        "expires_at": record.expires_at_text,
        "urls": {"get": f"{base}v1/files/{record.id}"},
    }


@router.get("/v1/files", operation_id="replicate_list_files")
async def list_files(
    caller: MayGenerate, share: UseShare, base_url: BaseUrl, files: UseFileStore
) -> dict[str, Any]:
    """Your files, newest first."""
    found = await files.list(owner=caller.owner, share=share(caller))
    return page_of([_file(record, base_url) for record in found])


@router.get("/v1/files/{file_id}", operation_id="replicate_get_file")
async def get_file(
    caller: MayGenerate, base_url: BaseUrl, files: UseFileStore, file_id: str
) -> dict[str, Any]:
    """What is known of a file."""
    return _file(await files.get(file_id, caller.owner), base_url)


@router.delete("/v1/files/{file_id}", status_code=204, operation_id="replicate_delete_file")
async def delete_file(
    caller: MayGenerate, share: UseShare, files: UseFileStore, file_id: str
) -> Response:
    """Delete a file; predictions that use it have copies of their own."""
    await files.delete(file_id, owner=caller.owner, share=share(caller))
    return Response(status_code=204)


@router.get("/v1/webhooks/default/secret", operation_id="replicate_webhook_secret")
async def webhook_secret(caller: MayGenerate) -> dict[str, str]:
    """What signs the webhooks of the caller's API key."""
    if caller.key is None:
        raise NotFound("Only API keys have a webhook secret")
    return {"key": caller.key.webhook_secret}
