"""What a request for decoding says, and what comes of it; on both sides of a decoder's socket."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MESSAGE_BYTES: Final = 2**16
"""The largest message."""
DAMAGED: Final = "cannot be decoded; it is damaged or cut off"


class UploadKind(StrEnum):
    """What an upload is used for, which decides what its transparent parts become."""

    PICTURE = "picture"
    """Shown over white, in the colours that its profile says."""
    MAP = "map"
    """Numbers rather than colours: transparent is black, and a colour profile is ignored."""
    MASK = "mask"
    """As a map; with an alpha channel it is white where the file is transparent."""


class Format(StrEnum):
    """The kinds of files that are decoded, by their names in Pillow."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    AVIF = "AVIF"
    HEIC = "HEIF"


@dataclass(frozen=True, slots=True)
class Picture:
    """What is stored of an upload. Width and height in pixels."""

    format: Format
    width: int
    height: int
    pixels_sha256: str
    """Over width, height and the RGB bytes."""
