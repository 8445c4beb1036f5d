"""Turns an uploaded picture into one that any worker reads as the same RGB pixels.

Upright, sRGB, 8 bits, without alpha, without metadata. A PNG, JPEG or WebP file that is all of
that is kept without its metadata, any other picture is written as PNG. It runs in a decoder
process (`service/submission/decoder.py`) and needs no network and no storage.
"""

import functools
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Final, Literal

from PIL import AvifImagePlugin, Image, ImageChops
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.core import png
from service.core.errors import InvalidImage
from service.core.upload_types import DAMAGED, Format, Picture, UploadKind
from service.submission import image_formats
from service.submission.colour import Conversion, to_srgb
from service.submission.image_formats import ANIMATED, PALETTE, Container, PngFacts

MAX_SIDE: Final = 65_535
"""Pixels; of a JPEG by its format. A PNG one pixel wide would take three times its pixels."""

MAX_KEPT_SCANS: Final = 20
"""A JPEG with more is written as PNG: its worker would pay for each of them, too."""

HALF: Final = 128
"""Alpha below which a pixel of a mask counts as transparent."""

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
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise for damaged files."""


def normalise(
    data: bytes,
    out: IO[bytes],
    *,
    kind: UploadKind,
    max_pixels: int,
    on_size: Callable[[int], None] = lambda _: None,
) -> Picture:
    """Decode one upload whole and write to `out` what is stored of it, unless it is as it was sent.

    `on_size` is called with the number of pixels before any of them is decoded; what it raises
    ends the decoding. Raises `InvalidImage` for what is damaged, animated or over the pixel
    limit, and `UnsupportedMedia` for a file of another kind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about damaged metadata: any file may cause them
        return _normalise(data, out, kind, max_pixels, on_size)


def _normalise(
    data: bytes,
    out: IO[bytes],
    kind: UploadKind,
    max_pixels: int,
    on_size: Callable[[int], None],
) -> Picture:
    container = image_formats.read(data)
    if container.size is not None:
        _check_size(container.size, max_pixels)
    try:
        opened = _open(container)
        _check_size(opened.size, max_pixels)
        if getattr(opened, "is_animated", False) and container.format is not Format.HEIC:
            raise InvalidImage(ANIMATED)
        on_size(opened.width * opened.height)
        size = opened.size
        look = _look(opened, container, kind)
        turn = _TURNS.get(_orientation(opened, container))
        may_be_kept = turn is None and _may_be_kept(container)
        if may_be_kept and container.format is Format.JPEG and look.is_plain(opened):
            # Every coefficient is read, and so checked; none but the means become pixels.
            opened.draft(opened.mode, (1, 1))
        opened.load()
        if may_be_kept and look.is_plain(opened):
            as_sent = container.data == data
            if not as_sent:
                out.write(container.data)
            digest = hashlib.sha256(container.data).hexdigest()
            return Picture(container.format, *size, digest, as_sent)
        image = look.rgb(opened)
        del opened  # what it holds is free before the next whole picture is made
        if turn is not None:
            image = image.transpose(turn)
    except _DECODE_ERRORS:
        raise InvalidImage(DAMAGED) from None
    written = hashlib.sha256()

    def put(piece: bytes) -> None:
        written.update(piece)
        out.write(piece)

    png.write(put, image)
    return Picture(Format.PNG, image.width, image.height, written.hexdigest())


class _StillWebP(WebPImageFile):
    """Frees the decoder, which holds two canvases, before Pillow copies the picture."""

    def _get_next(self) -> tuple[bytes, int, int]:
        frame = super()._get_next()
        del self._decoder
        return frame


def _open_heic(file: IO[bytes]) -> ImageFile:
    # Imported here: it takes memory in each decoder, and most uploads are none.
    import pillow_heif  # noqa: PLC0415 - as said above

    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = False
    opened: ImageFile = pillow_heif.HeifImageFile(file)  # type: ignore[no-untyped-call]  # upstream's
    return opened


_OPENERS: Final[dict[Format, Callable[[IO[bytes]], ImageFile]]] = {
    Format.PNG: PngImageFile,
    Format.JPEG: JpegImageFile,
    Format.WEBP: _StillWebP,
    Format.AVIF: AvifImagePlugin.AvifImageFile,
    Format.HEIC: _open_heic,
}
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidImage(f"has {width} x {height} pixels; at most {max_pixels} are served")
    if max(size) > MAX_SIDE:
        raise InvalidImage(f"has {width} x {height} pixels; a side may have {MAX_SIDE}")
    if width * height == 0:
        raise InvalidImage("has no pixels")


def _may_be_kept(container: Container) -> bool:
    """Whether a worker may decode what is left of the file: it is cheap, and Pillow can."""
    if container.png is not None and container.png.bit_depth > 8:  # noqa: PLR2004 - bits
        return False
    served = container.format in (Format.PNG, Format.JPEG, Format.WEBP)
    return served and container.still and container.scans <= MAX_KEPT_SCANS


_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each orientation upright (Exif 2.32, section 4.6.4)."""


def _orientation(opened: ImageFile, container: Container) -> int:
    """How the camera was held.

    AVIF and HEIC say it outside of Exif: Pillow puts what AVIF says into a block of its own, and
    libheif has turned HEIC.
    """
    own = opened.info.get("exif") if container.format is Format.AVIF else container.exif
    return _exif_orientation(own or b"")


def _exif_orientation(exif: bytes) -> int:
    """The first integer of the tag Orientation in the first directory (TIFF 6.0, section 2).

    1, which is upright, where there is none, or nothing that can be read.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    if exif[:2] not in (b"II", b"MM") or number(2, 2) != 42:  # noqa: PLR2004 - TIFF's number
        return 1
    start = number(4, 4)
    for at in range(start + 2, min(start + 2 + 12 * number(start, 2), len(exif) - 11), 12):
        size = _EXIF_INTEGERS.get(number(at + 2, 2))
        if number(at, 2) == _ORIENTATION and size is not None:
            return number(at + 8, size)
    return 1


_ORIENTATION: Final = 0x112
_EXIF_INTEGERS: Final = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}
"""Bytes of the integer types that lie in an entry itself."""


@dataclass(frozen=True, slots=True)
class _Look:
    """How the pixels of one file are meant to be seen."""

    kind: UploadKind
    conversion: Conversion | None = None
    key: tuple[int, ...] | None = None
    """The samples of the transparent colour, of 8 bits each."""
    low: Image.Image | None = None
    """The lower bytes of samples of 16 bits, where they count for the transparent colour."""
    low_key: tuple[int, ...] = ()
    alpha_table: bytes | None = None
    """The alpha of each palette entry."""

    def is_plain(self, opened: Image.Image) -> bool:
        """Whether Pillow's own conversion to RGB shows the same."""
        if self.conversion or self.key or self.alpha_table:
            return False
        return not _has_alpha(opened) or opened.getchannel("A").getextrema() == (255, 255)

    def rgb(self, opened: Image.Image) -> Image.Image:
        """The picture in RGB over the background of its kind, made strip by strip."""
        if opened.mode == "RGB" and self.is_plain(opened):
            opened.load()
            return opened
        by_alpha = self.kind is UploadKind.MASK and self._has_clear_pixels(opened)
        image = Image.new("RGB", opened.size)
        for box in png.strips(opened.size):
            image.paste(self._strip(opened, box, by_alpha=by_alpha), box)
        return image

    def _has_clear_pixels(self, opened: Image.Image) -> bool:
        """Whether any pixel is more than half transparent."""
        alphas = (self._alpha(opened.crop(box), box) for box in png.strips(opened.size))
        return any(alpha is not None and any(alpha.histogram()[:HALF]) for alpha in alphas)

    def _strip(
        self, opened: Image.Image, box: tuple[int, int, int, int], *, by_alpha: bool
    ) -> Image.Image:
        strip = opened.crop(box)
        alpha = self._alpha(strip, box)
        if by_alpha and alpha is not None:
            return ImageChops.invert(alpha).convert("RGB")
        if strip.mode in ("1", "LA"):
            strip = strip.convert("L")
        elif strip.mode in ("P", "RGBA"):
            strip = strip.convert("RGB")
        if self.conversion is not None:
            strip = self.conversion.apply(strip)
        strip = strip.convert("RGB")
        if alpha is None:
            return strip
        shown = Image.new(
            "RGB", strip.size, "white" if self.kind is UploadKind.PICTURE else "black"
        )
        shown.paste(strip, mask=alpha)
        return shown

    def _alpha(self, strip: Image.Image, box: tuple[int, int, int, int]) -> Image.Image | None:
        if _has_alpha(strip):
            return strip.getchannel("A")
        if self.alpha_table is not None:
            return strip.point(self.alpha_table, "L")
        if self.key is None:
            return None
        if strip.mode == "1":
            strip = strip.convert("L")
        clear = _equal(strip, self.key)
        if self.low is not None:
            clear = ImageChops.darker(clear, _equal(self.low.crop(box), self.low_key))
        return ImageChops.invert(clear)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "RGBA")


def _equal(image: Image.Image, key: tuple[int, ...]) -> Image.Image:
    """255 where all samples are those of `key`, otherwise 0."""
    masks = [
        band.point([255 * (value == sample) for value in range(256)])
        for band, sample in zip(image.split(), key, strict=True)
    ]
    return functools.reduce(ImageChops.darker, masks)


def _look(opened: ImageFile, container: Container, kind: UploadKind) -> _Look:
    facts = container.png
    key = low = alpha_table = None
    low_key: tuple[int, ...] = ()
    if facts is not None and facts.transparency is not None:
        key = _colour_key(facts)
        if facts.colour_type == PALETTE:
            alpha_table = facts.transparency[:256].ljust(256, b"\xff")
        elif key is not None and facts.bit_depth == 16:  # noqa: PLR2004 - bits
            low_key = tuple(sample & 255 for sample in key)
            key = tuple(sample >> 8 for sample in key)
            low = _open(container, low_bytes=True)
            low.load()
    conversion = None
    if kind is UploadKind.PICTURE:
        mode = {"1": "L", "LA": "L", "P": "RGB", "RGBA": "RGB"}.get(opened.mode, opened.mode)
        profile = container.profile or opened.info.get("icc_profile")
        conversion = to_srgb(
            profile, container.colour, mode, code_points_first=container.format is Format.PNG
        )
    return _Look(kind, conversion, key, low, low_key, alpha_table)


_GREY, _RGB = 0, 2
"""Colour types of a PNG (third edition, section 11.2.1)."""


def _colour_key(facts: PngFacts) -> tuple[int, ...] | None:
    """The transparent colour, in samples of 8 or 16 bits (section 11.3.1.1)."""
    samples = {_GREY: 1, _RGB: 3}.get(facts.colour_type, 0)
    content = facts.transparency or b""
    if not samples or len(content) != 2 * samples:
        return None
    most = 2**facts.bit_depth - 1
    scale = max(1, 255 // most)
    return tuple((value & most) * scale for value in struct.unpack_from(f">{samples}H", content))


def _open(container: Container, *, low_bytes: bool = False) -> ImageFile:
    """Open it with its reader; grey of 16 bits as 8 bits, on demand the lower ones."""
    opened = _OPENERS[container.format](io.BytesIO(container.data))
    grey = opened.mode == "I;16"
    if grey:
        opened._mode = "L"  # noqa: SLF001 - Pillow has no public way to choose a mode
    if grey or low_bytes:
        # Pillow's little-endian reader of 16 bits takes the second byte of each.
        raw = f"{opened.mode};16" + ("L" if opened.mode == "RGB" else "") * low_bytes
        raw = raw if low_bytes else "L;16B"
        opened.tile = [tile._replace(args=raw) for tile in opened.tile]
    return opened
