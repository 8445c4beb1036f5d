"""Stores the uploads of a request: decoded a few at a time, then written, or deleted again."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Final

import structlog
from anyio import fail_after, to_thread

from service.core import redis_keys
from service.core.errors import FieldError, InvalidImage, ServiceError, UnsupportedMedia
from service.core.params import StoredUpload
from service.core.storage import Storage, StorageError
from service.submission.decoded import Format, UploadKind
from service.submission.decoder import Decoded, UploadDecoder
from service.submission.form import IN_MEMORY_BYTES, Upload

WRITE_SECONDS: Final = 6
"""A client hears of a silent storage after this and `DISCARD_SECONDS`. The storage's own retries,
which a worker waits for, go on for 20 s, and twice as long where an object goes in parts."""
DISCARD_SECONDS: Final = 2

_KINDS: Final = {"control_image": UploadKind.MAP}
"""Of the fields that are not shown as pictures."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Uploads:
    """Decodes and stores uploads. Nothing stays in storage unless a job was made of it."""

    def __init__(self, storage: Storage, *, max_pixels: int) -> None:
        self._storage = storage
        self._decoder = UploadDecoder(max_pixels=max_pixels)

    async def store(
        self, job_id: str, files: dict[str, list[Upload]]
    ) -> dict[str, list[StoredUpload]]:
        """Decode and write all files; where one of them fails, none is left.

        Raises `InvalidImage`, `UnsupportedMedia`, `Busy` or `StorageError`.
        """
        try:
            return {
                field: [
                    await self._store_one(job_id, upload, field, number, len(uploads))
                    for number, upload in enumerate(uploads)
                ]
                for field, uploads in files.items()
            }
        except BaseException:
            await self.discard(job_id)
            raise

    async def _store_one(
        self, job_id: str, upload: Upload, field: str, number: int, count: int
    ) -> StoredUpload:
        kind = _KINDS.get(field, UploadKind.PICTURE)
        try:
            with _on_disk(upload) as source:
                async with self._decoder.decode(source, kind) as decoded:
                    return await self._write(job_id, upload, f"{field}-{number}", decoded)
        except (InvalidImage, UnsupportedMedia) as error:
            raise _named(error, field if count == 1 else f"{field}[{number}]") from None

    async def _write(
        self, job_id: str, upload: Upload, name: str, decoded: Decoded
    ) -> StoredUpload:
        picture = decoded.picture
        extension, content_type = _FILE_TYPES[picture.format]
        key = redis_keys.upload(job_id, f"{name.replace('_', '-')}.{extension}")
        try:
            with fail_after(WRITE_SECONDS):
                await self._storage.put_async(key, _mapped(decoded.file), content_type)
        except TimeoutError:
            raise StorageError(f"{key} is not written after {WRITE_SECONDS} s") from None
        return StoredUpload(
            key=key,
            sha256=upload.sha256,
            pixels_sha256=picture.pixels_sha256,
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


@contextmanager
def _on_disk(upload: Upload) -> Iterator[IO[bytes]]:
    """The upload as a file that another process can read; a small one is copied once."""
    if upload.size_bytes > IN_MEMORY_BYTES:
        upload.content.flush()
        yield upload.content
        return
    with os.fdopen(os.memfd_create("upload"), "w+b") as file:
        file.write(upload.content.read())
        file.flush()
        yield file


def _mapped(file: IO[bytes]) -> memoryview:
    """The bytes of a file, which are read as they are sent.

    They are not closed here: a storage that does not answer in time still holds them.
    """
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _named(error: ServiceError, label: str) -> ServiceError:
    message = error.detail
    return type(error)(f"{label} {message}", errors=[FieldError(label, message)])
