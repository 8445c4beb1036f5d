"""What a request for decoding says, and what comes of it; on both sides of a decoder's socket."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MESSAGE_BYTES: Final = 2**16
"""The largest message."""
DAMAGED: Final = "cannot be decoded; it is damaged or cut off"


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
    sha256: str
    """Of the file that is stored: two that are equal have the same pixels."""
    as_sent: bool = field(default=False, compare=False)
    """Whether the upload is stored as it is; otherwise what was written is."""
