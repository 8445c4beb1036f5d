"""Turns uploaded bytes into one RGB picture, or says why not. Pure: no network, no storage.

The kind of a file is decided by its first bytes, never by its name or header, and its size in
pixels is read before anything is decoded. Only Pillow's PNG, JPEG and WebP readers are ever run.
At most two whole pictures are in memory at a time, for one at the pixel limit takes 150 MiB.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.core.errors import InvalidImage, UnsupportedMedia
from service.submission import jpeg, png

_HEAD_BYTES: Final = 512
MAX_SIDE: Final = 65_535
"""Of a JPEG by its format; a PNG one pixel wide would take three times the memory of its pixels."""
MAX_SCANS: Final = 100
"""Of a progressive JPEG; encoders write some ten. Each costs as much as all pixels."""
QUICK_PIXELS: Final = 4 * 2**20
"""Up to here a picture is stored the quick way; above, its size counts more than the time."""
_STORED_COMPRESSION: Final = 1
"""Of the stored PNG: the fastest that compresses at all."""
_STRIP_PIXELS: Final = 2**20

_OTHER_KINDS: Final = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"%PDF": "PDF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"PK\x03\x04": "ZIP",
    b"\0\0\x01\0": "ICO",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\x1aE\xdf\xa3": "WebM",
    b"RIFF": "RIFF",
    b"\x1f\x8b": "gzip",
}

_DECODE_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise for damaged files."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One normalised picture. Width and height in pixels."""

    png: bytes
    width: int
    height: int
    pixels_sha256: str
    """Over width, height and the RGB bytes."""


def count_pixels(file: IO[bytes], *, max_pixels: int) -> int:
    """How many pixels a file says it has; nothing is decoded. Raises as `read`."""
    file.seek(0)
    opener = _opener(file, max_pixels)
    if opener is _StillWebP:
        file.seek(0)
        width, height = _webp_size(file.read(_HEAD_BYTES))
        return width * height
    file.seek(0)
    try:
        opened = opener(file)
        _check_size(opened.size, max_pixels)
    except _DECODE_ERRORS:
        raise InvalidImage("cannot be decoded; it is damaged or cut off") from None
    return opened.width * opened.height


def read(file: IO[bytes], *, max_pixels: int) -> Picture:
    """Decode and normalise one upload: upright, RGB, 8 bits, alpha over white.

    Raises `InvalidImage` for what is damaged, animated or over the pixel limit, and
    `UnsupportedMedia` for a file of another kind.
    """
    file.seek(0)
    opener = _opener(file, max_pixels)
    file.seek(0)
    if opener is JpegImageFile:
        scans = jpeg.count_scans(file.read())
        if scans > MAX_SCANS:
            raise InvalidImage(f"has {scans} scans; at most {MAX_SCANS} are served")
        file.seek(0)
    try:
        opened = opener(file)
        _check(opened, max_pixels)
        opened.load()
        turn = _turn(opened)
        image = _rgb(opened)
        del opened  # what it holds is free before the next whole picture is made
        if turn is not None:
            image = image.transpose(turn)
    except _DECODE_ERRORS:
        raise InvalidImage("cannot be decoded; it is damaged or cut off") from None
    return _finish(image)


class _StillWebP(WebPImageFile):
    """Lets go of the decoder, which holds two canvases, before Pillow copies the picture."""

    def _get_next(self) -> tuple[bytes, int, int]:
        frame = super()._get_next()
        del self._decoder
        return frame


def _opener(file: IO[bytes], max_pixels: int) -> Callable[[IO[bytes]], ImageFile]:
    """The reader for a file, by its first bytes."""
    head = file.read(_HEAD_BYTES)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        # Its reader makes room for the whole canvas as soon as it is opened.
        _check_size(_webp_size(head), max_pixels)
        return _StillWebP
    if not head:
        raise InvalidImage("is empty")
    kind = _other_kind(head)
    if kind is not None:
        raise UnsupportedMedia(f"is {kind}; PNG, JPEG and WebP are served")
    raise InvalidImage("is no picture; PNG, JPEG and WebP are served")


def _other_kind(head: bytes) -> str | None:
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "AVIF, HEIC or MP4"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html", b"<script", b"<?xml")):
        return "HTML or XML"
    return None


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:  # noqa: PLR2004 - end of the canvas size
        width = int.from_bytes(head[24:27], "little") + 1
        return width, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L" and len(head) >= 25:  # noqa: PLR2004 - end of the size bits
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(head) >= 30:  # noqa: PLR2004 - end of the frame header
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise InvalidImage("cannot be decoded; it is damaged or cut off")


def _check(opened: ImageFile, max_pixels: int) -> None:
    _check_size(opened.size, max_pixels)
    if getattr(opened, "is_animated", False):
        raise InvalidImage("is animated; send a still picture")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidImage(f"has {width} x {height} pixels; at most {max_pixels} are served")
    if max(size) > MAX_SIDE:
        raise InvalidImage(f"has {width} x {height} pixels; a side may have {MAX_SIDE}")
    if width * height == 0:
        raise InvalidImage("has no pixels")


def _rgb(opened: ImageFile) -> Image.Image:
    """The picture in RGB over white; made strip by strip, unless it is so already."""
    if opened.mode == "RGB" and not opened.has_transparency_data:
        return opened
    image = Image.new("RGB", opened.size)
    for box in _strips(opened.size):
        image.paste(_flat(opened.crop(box)), box)
    return image


def _flat(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey: Pillow's own conversion would clip at 255 instead of scaling.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        image.info.pop("transparency", None)
    if not image.has_transparency_data:
        return image.convert("RGB")
    pixels = image.convert("RGBA")
    flat = Image.new("RGB", pixels.size, "white")
    flat.paste(pixels, mask=pixels.getchannel("A"))
    return flat


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover a picture from top to bottom, each over its whole width."""
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _turn(opened: ImageFile) -> Image.Transpose | None:
    """What turns it as the camera held it; a picture whose EXIF block is damaged stays as it is."""
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return None
    return _TURNS.get(orientation)


_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by the value of EXIF's Orientation tag (Exif 3.0, 4.6.5)."""


def _finish(image: Image.Image) -> Picture:
    # Neither way lets text, a profile or EXIF of the upload go along.
    pixels = hashlib.sha256(b"%dx%d:" % image.size)
    if image.width * image.height <= QUICK_PIXELS:
        raw = image.tobytes()
        pixels.update(raw)
        stored = png.encode(raw, *image.size)
    else:
        for box in _strips(image.size):
            pixels.update(image.crop(box).tobytes())
        stored = _small(image)
    return Picture(stored, image.width, image.height, pixels.hexdigest())


def _small(image: Image.Image) -> bytes:
    image.info = {}
    stored = io.BytesIO()
    image.save(stored, "PNG", compress_level=_STORED_COMPRESSION)
    return stored.getvalue()
