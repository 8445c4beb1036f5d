"""What is stored of an upload."""

import io

from PIL import Image

from service.core.upload_types import Picture, UploadKind
from service.submission import images

MAX_PIXELS = 40_000_000


def stored(data: bytes, kind: UploadKind = UploadKind.PICTURE) -> tuple[Picture, bytes]:
    """What is stored of an upload."""
    out = io.BytesIO()
    picture = images.normalise(data, out, kind=kind, max_pixels=MAX_PIXELS)
    assert bool(out.getvalue()) != picture.as_sent
    return picture, data if picture.as_sent else out.getvalue()


def read(data: bytes, kind: UploadKind = UploadKind.PICTURE) -> tuple[Picture, Image.Image]:
    """The normalised picture, and what a worker reads of it."""
    picture, content = stored(data, kind)
    return picture, Image.open(io.BytesIO(content), formats=[picture.format]).convert("RGB")


def pixel(data: bytes, kind: UploadKind = UploadKind.PICTURE) -> tuple[int, ...]:
    """The upper left pixel that a worker reads."""
    return read(data, kind)[1].getpixel((0, 0))


def near(found: tuple[int, ...], wanted: tuple[int, ...], tolerance: int) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))
