"""Stores the uploads of a request: decoded a few at a time, then written, or deleted again."""

import io
import mmap
from functools import partial
from typing import IO, Final

import structlog
from anyio import fail_after, to_thread

from service.core import redis_keys
from service.core.errors import FieldError, InvalidImage, ServiceError, UnsupportedMedia
from service.core.param_types import StoredUpload
from service.core.schema import Files, marked
from service.core.storage import Storage, StorageError
from service.core.upload_types import Format, UploadKind
from service.submission.decoder import Decoded, UploadDecoder
from service.submission.form import Form, Upload

WRITE_SECONDS: Final = 6
"""A client hears of a silent storage after this and `DISCARD_SECONDS`. The storage's own retries,
which a worker waits for, go on for 20 s, and twice as long where an object goes in parts."""
DISCARD_SECONDS: Final = 2

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Uploads:
    """Decodes and stores uploads. Nothing stays in storage unless a job was made of it."""

    def __init__(self, storage: Storage, *, max_pixels: int) -> None:
        self._storage = storage
        self._decoder = UploadDecoder(max_pixels=max_pixels)

    async def store(self, job_id: str, form: Form, *, owner: str) -> dict[str, list[StoredUpload]]:
        """Decode and write all files of a form; where one of them fails, none is left.

        Raises `InvalidImage`, `UnsupportedMedia`, `Busy` or `StorageError`.
        """
        kinds = {field: files.kind for field, files in marked(form.declaration, Files).items()}
        try:
            return {
                field: [
                    await self._store_one(job_id, upload, kinds[field], number, len(uploads), owner)
                    for number, upload in enumerate(uploads)
                ]
                for field, uploads in form.files.items()
            }
        except BaseException:
            await self.discard(job_id)
            raise

    async def _store_one(
        self, job_id: str, upload: Upload, kind: UploadKind, number: int, count: int, owner: str
    ) -> StoredUpload:
        name = upload.field
        try:
            async with self._decoder.decode(upload.content, kind, owner=owner) as decoded:
                return await self._write(job_id, upload, f"{name}-{number}", decoded)
        except (InvalidImage, UnsupportedMedia) as error:
            raise _named(error, name if count == 1 else f"{name}[{number}]") from None

    async def _write(
        self, job_id: str, upload: Upload, name: str, decoded: Decoded
    ) -> StoredUpload:
        picture = decoded.picture
        extension, content_type = _FILE_TYPES[picture.format]
        key = redis_keys.upload(job_id, f"{name.replace('_', '-')}.{extension}")
        try:
            with fail_after(WRITE_SECONDS):
                await self._storage.put_async(key, _in_memory(decoded.file), content_type)
        except TimeoutError:
            raise StorageError(f"{key} is not written after {WRITE_SECONDS} s") from None
        return StoredUpload(
            key=key,
            sha256=upload.sha256,
            pixels_sha256=picture.sha256,
            width=picture.width,
            height=picture.height,
        )

    async def discard(self, job_id: str) -> None:
        """Delete all uploads of a job that is not to be.

        Where the storage does not answer in time they are left there, for the sweep of a folder
        or the lifecycle rule of a bucket: the client is told at once, and there is no job that
        could read them.
        """
        delete = partial(self._storage.delete_folder, f"uploads/{job_id}")
        try:
            with fail_after(DISCARD_SECONDS, shield=True):
                await to_thread.run_sync(delete, abandon_on_cancel=True)
        except (StorageError, TimeoutError) as error:
            log.warning("uploads are left in storage", job_id=job_id, cause=type(error).__name__)

    def close(self) -> None:
        """End the decoder processes."""
        self._decoder.close()


_FILE_TYPES: Final = {
    Format.PNG: ("png", "image/png"),
    Format.JPEG: ("jpeg", "image/jpeg"),
    Format.WEBP: ("webp", "image/webp"),
}


def _in_memory(file: IO[bytes]) -> memoryview:
    """The bytes of a file; one on disk is read as it is sent.

    They are not closed here: a storage that does not answer in time still holds them.
    """
    if isinstance(file, io.BytesIO):
        return memoryview(file.getvalue())
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _named(error: ServiceError, label: str) -> ServiceError:
    message = error.detail
    return type(error)(f"{label} {message}", errors=[FieldError(label, message)])
