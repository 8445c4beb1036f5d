"""Takes uploads from the form to storage: decoded a few at a time, written, or taken back.

How a picture is read stands in `service/submission/images.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import structlog
from anyio import CapacityLimiter, fail_after, to_thread

from service.core import redis_keys
from service.core.errors import FieldError, InvalidImage, ServiceError, UnsupportedMedia
from service.core.storage import Storage, StorageError
from service.submission import images
from service.submission.form import Upload
from service.submission.room import Room
from service.submission.validate import StoredUpload

DECODES_AT_ONCE: Final = 2
"""Threads; how many pixels they may hold stands in `service/submission/room.py`."""
WRITE_SECONDS: Final = 6
"""A client hears of a silent storage after this and `DISCARD_SECONDS`. The storage's own retries,
which a worker waits for, go on for 20 s, and twice as long where an object goes in parts."""
DISCARD_SECONDS: Final = 2

Read = TypeVar("Read")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Uploads:
    """Where uploads go in. Nothing stays in storage unless a job was made of it."""

    def __init__(self, storage: Storage, *, max_pixels: int) -> None:
        self._storage = storage
        self._max_pixels = max_pixels
        self._decodes = CapacityLimiter(DECODES_AT_ONCE)
        self._room = Room()

    async def _read(self, reader: Callable[..., Read], upload: Upload, label: str) -> Read:
        """What `reader` makes of one upload, off the event loop.

        Raises `InvalidImage` or `UnsupportedMedia`, naming `label`.
        """
        read = partial(reader, upload.content, max_pixels=self._max_pixels)
        try:
            return await to_thread.run_sync(read, limiter=self._decodes)
        except (InvalidImage, UnsupportedMedia) as error:
            raise _named(error, label) from None

    async def store(
        self, job_id: str, files: dict[str, list[Upload]]
    ) -> dict[str, list[StoredUpload]]:
        """Decode all files, then write all of them; where that fails, none is left.

        Raises `InvalidImage`, `UnsupportedMedia` or `StorageError`.
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
        label = field if count == 1 else f"{field}[{number}]"
        pixels = await self._read(images.count_pixels, upload, label)
        async with self._room.take(pixels):
            return await self._store_picture(job_id, upload, field, number, label)

    async def _store_picture(
        self, job_id: str, upload: Upload, field: str, number: int, label: str
    ) -> StoredUpload:
        picture = await self._read(images.read, upload, label)
        key = redis_keys.upload(job_id, f"{field.replace('_', '-')}-{number}.png")
        try:
            with fail_after(WRITE_SECONDS):
                await self._storage.put_async(key, picture.png, "image/png")
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


def _named(error: ServiceError, label: str) -> ServiceError:
    message = error.detail
    return type(error)(f"{label} {message}", errors=[FieldError(label, message)])
