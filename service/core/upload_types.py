"""What an upload is used for, and what comes of decoding it, on both sides of a decoder's socket.

Imports nothing heavy: a decoder process is to stay small.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class UploadKind(StrEnum):
    """The kinds of uploads; each upload field is declared with one."""

    PICTURE = "picture"
    """Shown over white, in the colours that its profile says."""
    MAP = "map"
    """Numbers rather than colours: transparent is black, and a colour profile is ignored."""
    MASK = "mask"
    """As a map; with an alpha channel it is white where the file is transparent."""


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
