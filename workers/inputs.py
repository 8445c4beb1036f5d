"""A job's uploads, read from storage at the moment the engine wants them.

A storage that is away is waited for; an object that is gone ends the job.
"""

import io
from collections.abc import Callable
from threading import Event
from typing import Final

import structlog
from PIL import Image, UnidentifiedImageError

from service.core.errors import InputLost, StorageFailed
from service.core.params import GenerateRequest
from service.core.storage import ObjectMissing, Storage, StorageError
from workers import retry

logger = structlog.get_logger(__name__)

PATIENCE_SECONDS: Final = 300.0
"""How long a storage that does not answer is waited for before the attempt is given up."""


class Inputs:
    """The image prompts and the ControlNet map of one job."""

    def __init__(self, storage: Storage, request: GenerateRequest, *, interrupt: Event) -> None:
        """`interrupt` ends a wait for the storage: the job is no longer wanted here."""
        self._storage = storage
        self._request = request
        self._interrupt = interrupt

    def image(self, index: int) -> Image.Image:
        """Read image prompt `index` as RGB.

        Raises `InputLost` where it is gone or damaged, `StorageFailed` after long silence.
        """
        return self._read(self._request.images[index].key, f"image prompt {index}")

    def control(self) -> Callable[[], Image.Image] | None:
        """Return a reader of the ControlNet map as RGB, `None` where the job has no map."""
        control = self._request.control
        return None if control is None else lambda: self._read(control.key, "the ControlNet map")

    def _read(self, key: str, what: str) -> Image.Image:
        def note(error: Exception) -> None:
            logger.warning("storage does not answer", key=key, cause=str(error))

        def get() -> bytes:
            try:
                return self._storage.get(key)
            except ObjectMissing:
                raise InputLost(f"The upload of {what} is no longer in storage.") from None

        try:
            data = retry.persist(
                get,
                StorageError,
                interrupt=self._interrupt,
                patience_seconds=PATIENCE_SECONDS,
                on_error=note,
            )
            return Image.open(io.BytesIO(data)).convert("RGB")
        except StorageError:
            raise StorageFailed(f"The upload of {what} could not be read from storage.") from None
        except retry.Interrupted:
            raise StorageFailed(f"Reading {what} was interrupted.") from None
        except (UnidentifiedImageError, OSError):
            raise InputLost(f"The upload of {what} is damaged in storage.") from None
