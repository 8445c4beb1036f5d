"""The pictures of a job: uploads read from storage, and finished pictures encoded as files.

A finished picture carries the parameters that it was made with, as the JSON of `parameters`: a PNG
in a text chunk named `imageprompt`, a JPEG or WebP in the UserComment of its EXIF data. From it the
picture can be made again. It holds no job id and no time, so that the same request gives the same
bytes.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Event
from typing import Any, Final

import structlog
from PIL import ExifTags, UnidentifiedImageError
from PIL.Image import Exif, Image
from PIL.Image import open as open_image
from PIL.PngImagePlugin import PngInfo

from service.core.errors import InputLost, StorageFailed
from service.core.params import GenerateRequest, OutputFormat
from service.core.schema import picture_metadata
from service.core.storage import ObjectMissing, Storage, StorageError
from workers import retry

logger = structlog.get_logger(__name__)

STORAGE_RETRY_SECONDS: Final = 300.0
"""How long reads and writes of the storage are retried before the attempt fails."""

TEXT_CHUNK: Final = "imageprompt"
_ASCII: Final = b"ASCII\0\0\0"  # EXIF 2.32, 4.6.5: the character code of a UserComment


def read_upload(storage: Storage, key: str, *, interrupt: Event) -> Image:
    """Read one upload of a job as RGB, with retries while the storage does not answer.

    `interrupt` ends the retries: the job is no longer wanted here. Raises `InputLost` where the
    object is gone or damaged, `StorageFailed` after `STORAGE_RETRY_SECONDS` or an interrupt.
    """
    name = PurePosixPath(key).stem

    def note(error: Exception) -> None:
        logger.warning("storage does not answer", key=key, cause=str(error))

    def get() -> bytes:
        try:
            return storage.get(key)
        except ObjectMissing:
            raise InputLost(f"The upload {name} is no longer in storage.") from None

    try:
        data = retry.with_backoff(
            get,
            StorageError,
            interrupt=interrupt,
            limit_seconds=STORAGE_RETRY_SECONDS,
            on_error=note,
        )
        return open_image(io.BytesIO(data)).convert("RGB")
    except StorageError:
        raise StorageFailed(f"The upload {name} could not be read from storage.") from None
    except retry.Interrupted:
        raise StorageFailed(f"Reading the upload {name} was interrupted.") from None
    except (UnidentifiedImageError, OSError):
        raise InputLost(f"The upload {name} is damaged in storage.") from None


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One encoded picture."""

    data: bytes
    content_type: str
    extension: str
    sha256: str


def parameters(request: GenerateRequest, index: int) -> dict[str, Any]:
    """Describe picture `index` of a job: all that is needed to make it again, JSON-ready."""
    return picture_metadata(request) | {"seed": request.seed + index, "num_images": 1}


def encode(image: Image, request: GenerateRequest, index: int) -> PictureFile:
    """Encode picture `index` of a job in the format that the request asks for."""
    text = json.dumps(parameters(request, index), separators=(",", ":"), sort_keys=True)
    kind, out = request.output_format, io.BytesIO()
    if kind is OutputFormat.PNG:
        chunk = PngInfo()
        chunk.add_text(TEXT_CHUNK, text)
        # Level 3 takes a third of the default's time for a twentieth more bytes.
        image.save(out, "PNG", pnginfo=chunk, compress_level=3)
    else:
        exif = Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode("ascii")
        if kind is OutputFormat.JPEG:
            image.save(out, "JPEG", quality=95, subsampling=0, exif=exif)
        else:
            image.save(out, "WEBP", quality=92, exif=exif)
    data = out.getvalue()
    return PictureFile(data, kind.content_type, kind.value, hashlib.sha256(data).hexdigest())


def read_parameters(image: Image) -> dict[str, Any] | None:
    """Read back the parameters of an opened picture; `None` where it carries none."""
    text = getattr(image, "text", {}).get(TEXT_CHUNK)
    if text is None:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        if not isinstance(comment, bytes) or not comment.startswith(_ASCII):
            return None
        text = comment.removeprefix(_ASCII).decode("ascii")
    content = json.loads(text)
    return content if isinstance(content, dict) else None
