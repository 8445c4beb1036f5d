"""Finished pictures as files that carry the parameters they were made with.

PNG: a text chunk named `imageprompt`. JPEG and WebP: EXIF UserComment. Both hold the JSON of
`parameters`, from which the picture can be made again. There is no job id and no time in it, so
that the same request gives the same bytes.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any, Final

from PIL import ExifTags
from PIL.Image import Exif, Image
from PIL.PngImagePlugin import PngInfo

from service.core.params import GenerateRequest, OutputFormat

TEXT_CHUNK: Final = "imageprompt"
_ASCII: Final = b"ASCII\0\0\0"  # EXIF 2.32, 4.6.5: the character code of a UserComment


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One encoded picture."""

    data: bytes
    content_type: str
    extension: str
    sha256: str


def parameters(request: GenerateRequest, index: int) -> dict[str, Any]:
    """Describe picture `index` of a job: all that is needed to make it again, JSON-ready.

    Uploads appear by their SHA-256; storage keys and the webhook are left out.
    """
    private: dict[str, Any] = {
        "webhook_url": True,
        "images": {"__all__": {"key"}},
        "control": {"key"},
    }
    content = request.model_dump(mode="json", exclude=private)
    return content | {"seed": request.seed + index, "num_images": 1}


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
