"""The pictures of a job: uploads read from storage, and finished pictures encoded as files.

A finished picture carries what it was made with; `service/core/picture_metadata.py` says in which
forms.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Event
from typing import Any, Final

import structlog
from PIL import UnidentifiedImageError
from PIL.Image import Image
from PIL.Image import open as open_image

from service.core import picture_metadata, png
from service.core.catalog import Catalog
from service.core.errors import InputLost, StorageFailed
from service.core.job import StoredImage
from service.core.param_types import OutputFormat
from service.core.params import GenerateRequest
from service.core.schema import picture_metadata as public_fields
from service.core.settings import Provenance, Settings
from service.core.storage import ObjectMissing, Storage, StorageError
from workers import retry
from workers.content_credentials import ContentCredentials
from workers.weights import revisions

logger = structlog.get_logger(__name__)

STORAGE_RETRY_SECONDS: Final = 300.0
"""How long reads and writes of the storage are retried before the attempt fails."""


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
        image = open_image(io.BytesIO(data))
        image.load()
    except StorageError:
        raise StorageFailed(f"The upload {name} could not be read from storage.") from None
    except retry.Interrupted:
        raise StorageFailed(f"Reading the upload {name} was interrupted.") from None
    except (UnidentifiedImageError, OSError):
        raise InputLost(f"The upload {name} is damaged in storage.") from None
    # `convert` would copy what is RGB already: 118 MB for a picture of 40 megapixels.
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One encoded picture."""

    data: bytes
    content_type: str
    extension: str
    sha256: str


class PictureEncoder:
    """Encodes finished pictures, which then tell how they were made."""

    def __init__(
        self,
        weights: Mapping[str, Mapping[str, str]] | None = None,
        *,
        provenance: Provenance = Provenance.XMP,
        credentials: ContentCredentials | None = None,
    ) -> None:
        """`weights` has the revisions of each served model (`workers.weights.revisions`).

        `credentials` sign where `provenance` is `c2pa`.
        """
        self._weights = weights or {}
        self._provenance = provenance
        self._credentials = credentials

    @classmethod
    def from_settings(cls, settings: Settings, catalog: Catalog) -> "PictureEncoder":
        """The encoder of a worker. Raises `ConfigurationError` where it is to sign but cannot."""
        credentials = None
        if settings.provenance is Provenance.C2PA:
            credentials = ContentCredentials(settings.c2pa_certificates, settings.c2pa_key)
        return cls(
            {name: revisions(entry) for name, entry in catalog.models.items()},
            provenance=settings.provenance,
            credentials=credentials,
        )

    def encode(self, image: Image, request: GenerateRequest, index: int) -> PictureFile:
        """Encode picture `index` of a job in the format that the request asks for."""
        recipe = self.recipe(request, index)
        text = picture_metadata.recipe_text(recipe)
        description = picture_metadata.generation_parameters(recipe)
        marked = self._provenance is not Provenance.NONE
        kind = request.output_format
        if kind is OutputFormat.PNG:
            data = png.encode(image, chunks=_chunks(text, description, marked=marked))
        else:
            out = io.BytesIO()
            options: dict[str, Any] = {"exif": picture_metadata.exif(text, description)}
            if marked:
                options["xmp"] = picture_metadata.XMP.encode()
            if kind is OutputFormat.JPEG:
                image.save(out, "JPEG", quality=95, subsampling=0, **options)
            else:
                image.save(out, "WEBP", quality=92, **options)
            data = out.getvalue()
        if self._credentials is not None:  # last: any later change would break the signature
            data = self._credentials.sign(data, kind.content_type)
        return PictureFile(data, kind.content_type, kind.value, hashlib.sha256(data).hexdigest())

    def recipe(self, request: GenerateRequest, index: int) -> dict[str, Any]:
        """All that is needed to make picture `index` of a job again, JSON-ready."""
        return public_fields(request) | {
            "seed": request.seed + index,
            "num_images": 1,
            "weights": self._weights_of(request),
        }

    def _weights_of(self, request: GenerateRequest) -> dict[str, str]:
        """The revisions of the parts of the model that made a picture."""
        used = {"base", "vae", *(f"adapter/{name}" for name in request.ip_scales)}
        used |= {f"control/{control.type}" for control in request.controls}
        used |= {f"lora/{name}" for name in request.loras}
        known = self._weights.get(request.model, {})
        return {
            name: revision
            for name, revision in known.items()
            if name in used or name.startswith("base+")
        }


def _chunks(text: str, description: str, *, marked: bool) -> list[bytes]:
    chunks = [
        png.text_chunk(picture_metadata.PNG_RECIPE, text),
        png.text_chunk(picture_metadata.PNG_PARAMETERS, description),
    ]
    if marked:
        xmp = png.international_text_chunk(picture_metadata.PNG_XMP, picture_metadata.XMP)
        chunks.append(xmp)
    return chunks


def encode_map(image: Image) -> PictureFile:
    """A control map as a PNG without metadata."""
    data = png.encode(image.convert("RGB"))
    return PictureFile(data, "image/png", "png", hashlib.sha256(data).hexdigest())


def stored(
    key: str, file: PictureFile, size: tuple[int, int], *, seed: int | None = None
) -> StoredImage:
    """What the job's record says of a file that was written to storage."""
    return StoredImage(
        key=key,
        content_type=file.content_type,
        width=size[0],
        height=size[1],
        seed=seed,
        sha256=file.sha256,
        size_bytes=len(file.data),
    )
