"""Takes uploads from the form to storage: decoded a few at a time, written, or taken back.

How a picture is read stands in `service/pictures.py`.
"""

from functools import partial
from typing import Final

import structlog
from anyio import CapacityLimiter, fail_after, to_thread

from service import pictures
from service.core import keys
from service.core.errors import FieldError, InvalidImage, ServiceError, UnsupportedMedia
from service.core.storage import Storage, StorageError
from service.multipart import Upload
from service.plan import StoredUpload

DECODES_AT_ONCE: Final = 2
"""A picture at the pixel limit takes some hundred MB while it is decoded."""
WRITE_SECONDS: Final = 6
"""A client hears of a silent storage after this and `DISCARD_SECONDS`. The storage's own retries,
which a worker waits for, go on for 20 s, and twice as long where an object goes in parts."""
DISCARD_SECONDS: Final = 2

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Uploads:
    """Where uploads go in. Nothing stays in storage unless a job was made of it."""

    def __init__(self, storage: Storage, *, max_pixels: int) -> None:
        self._storage = storage
        self._max_pixels = max_pixels
        self._decodes = CapacityLimiter(DECODES_AT_ONCE)

    async def read(self, upload: Upload, label: str) -> pictures.Picture:
        """Decode one upload off the event loop.

        Raises `InvalidImage` or `UnsupportedMedia`, naming `label`.
        """
        decode = partial(pictures.read, upload.content, max_pixels=self._max_pixels)
        try:
            return await to_thread.run_sync(decode, limiter=self._decodes)
        except (InvalidImage, UnsupportedMedia) as error:
            raise _named(error, label) from None

    async def store(
        self, job_id: str, files: dict[str, list[Upload]]
    ) -> dict[str, list[StoredUpload]]:
        """Decode all files, then write all of them; where that fails, none is left.

        Raises as `read`, or `StorageError`.
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
        picture = await self.read(upload, label)
        key = keys.upload(job_id, f"{field.replace('_', '-')}-{number}.png")
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

        Where the storage does not answer in time they are left to its sweep: the client is told
        at once, and there is no job that could read them.
        """
        delete = partial(self._storage.delete_folder, f"uploads/{job_id}")
        try:
            with fail_after(DISCARD_SECONDS, shield=True):
                await to_thread.run_sync(delete, abandon_on_cancel=True)
        except (StorageError, TimeoutError) as error:
            log.warning("uploads are left to the sweep", job_id=job_id, cause=type(error).__name__)


def _named(error: ServiceError, label: str) -> ServiceError:
    message = error.detail
    return type(error)(f"{label} {message}", errors=[FieldError(label, message)])
