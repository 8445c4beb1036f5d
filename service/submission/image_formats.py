"""Recognises picture files by their bytes, and cuts them down to what a decoder needs.

Metadata never reaches a decoder: colour profile, orientation and the transparent colour of a PNG
are read here, everything else is dropped. What remains has as many scans and segments as were
counted here, whatever a file hides inside of others.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from service.core.errors import InvalidImage, UnsupportedMedia
from service.core.png import SIGNATURE, chunk
from service.core.upload_types import DAMAGED, Format
from service.submission import other_formats

SERVED: Final = "PNG, JPEG, WebP, AVIF and HEIC are served"
ANIMATED: Final = "is animated; send a still picture"
MAX_SCANS: Final = 100
"""Of a progressive JPEG; encoders write some ten. Each costs as much as all pixels."""
MAX_TABLES: Final = 1000
"""Segments of a JPEG that are no metadata; encoders write a few for each scan."""
MAX_READ: Final = 1000
"""Segments of each code that may hold Exif, a part of the profile (255 at most) or how to read the
samples of a JPEG; further ones are ignored."""
MAX_PROFILE_BYTES: Final = 16 * 2**20
"""Of a colour profile once it is inflated; a larger one is ignored."""


@dataclass(frozen=True, slots=True)
class Container:
    """What a decoder needs of one file, and what tells how its pixels are meant."""

    format: Format
    data: bytes
    """The file without metadata; in AVIF and HEIC it is there, but nothing says what it is."""
    size: tuple[int, int] | None = None
    """Width and height as the file claims them, `None` where only its decoder can tell."""
    profile: bytes | None = None
    """The ICC profile as embedded."""
    exif: bytes | None = None
    """The Exif block, which begins with its TIFF header."""
    colour: Mapping[bytes, bytes] = field(default_factory=dict)
    """What a PNG's cICP, sRGB, cHRM and gAMA chunks hold; cICP of AVIF and HEIC likewise."""
    scans: int = 1
    still: bool = True
    """`False` for the only frame of an animation."""
    png: "PngFacts | None" = None


@dataclass(frozen=True, slots=True)
class PngFacts:
    """What a PNG says about its samples (PNG specification, third edition, 11.2.1, 11.3.1.1).

    `bit_depth` is 1, 2, 4, 8 or 16; `transparency` is the content of tRNS.
    """

    bit_depth: int
    colour_type: int
    transparency: bytes | None


def read(data: bytes) -> Container:
    """Recognise a file and take it apart.

    Raises `InvalidImage` for what is damaged, animated or made to cost too much, and
    `UnsupportedMedia`, with the file's true name, for what is not served.
    """
    try:
        if data.startswith(SIGNATURE):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError):
        raise InvalidImage(DAMAGED) from None
    if data[4:8] == b"ftyp":
        return _isobmff(data)
    if not data:
        raise InvalidImage("is empty")
    kind = other_formats.name(data[: other_formats.HEAD_BYTES])
    if kind is not None:
        raise UnsupportedMedia(f"is {kind}; {SERVED}")
    raise InvalidImage(f"is not a picture; {SERVED}")


def _png(data: bytes) -> Container:
    """Keep header, palette and pixels; their data become one chunk with a checked content."""
    if data[12:16] != b"IHDR":
        raise InvalidImage(DAMAGED)
    colour_type = data[25]
    found, pixels = _png_chunks(data, has_palette=colour_type == PALETTE)
    header, palette = found[b"IHDR"], found.get(b"PLTE", b"")
    if len(header) != 13 or not pixels:  # noqa: PLR2004 - section 11.2.1
        raise InvalidImage(DAMAGED)
    if b"acTL" in found and int.from_bytes(found[b"acTL"][:4]) > 1:
        raise InvalidImage(ANIMATED)
    kept = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    transparency = found.get(b"tRNS")
    if colour_type == PALETTE:
        if len(palette) not in _PALETTE_BYTES:
            raise InvalidImage(DAMAGED)
        kept.insert(1, (b"PLTE", palette))
        if len(transparency or b"") > len(palette) // 3:
            transparency = None
    width, height, bit_depth = struct.unpack_from(">IIB", header)
    return Container(
        Format.PNG,
        SIGNATURE + b"".join([chunk(kind, body) for kind, body in kept]),
        (width, height),
        profile=_inflated(found[b"iCCP"]) if b"iCCP" in found else None,
        exif=found.get(b"eXIf"),
        colour={kind: found[kind] for kind in _PNG_COLOUR if kind in found},
        png=PngFacts(bit_depth, colour_type, transparency),
    )


def _png_chunks(data: bytes, *, has_palette: bool) -> tuple[dict[bytes, bytes], bytes]:
    """The first sound chunk of each kind that is read, and all data of pixels.

    As in libpng, a chunk that no pixel needs is passed over where it is in the wrong place or has a
    wrong checksum.
    """
    found: dict[bytes, bytes] = {}
    pixels = bytearray()
    view, at, end = memoryview(data), len(SIGNATURE), len(data)
    while at + 12 <= end:
        length = int.from_bytes(view[at : at + 4])
        kind = data[at + 4 : at + 8]
        body, at = at + 8, at + 12 + length
        if kind == b"IEND":
            break
        late = (pixels and kind in _PNG_BEFORE_PIXELS) or (b"PLTE" in found and kind in _PNG_COLOUR)
        early = kind == b"tRNS" and has_palette and b"PLTE" not in found
        if kind not in _PNG_CHUNKS or kind in found or late or early:
            continue
        if at > end or zlib.crc32(view[body - 4 : at - 4]) != int.from_bytes(view[at - 4 : at]):
            if kind in _PNG_NEEDED:
                raise InvalidImage(DAMAGED)
        elif kind == b"IDAT":
            pixels += view[body : at - 4]
        else:
            found[kind] = data[body : at - 4]
    return found, bytes(pixels)


PALETTE: Final = 3
"""A colour type (section 11.2.1)."""
_PALETTE_BYTES: Final = range(3, 3 * 256 + 1, 3)
_PNG_COLOUR: Final = frozenset((b"cICP", b"iCCP", b"sRGB", b"cHRM", b"gAMA"))
"""Come before the palette."""
_PNG_BEFORE_PIXELS: Final = _PNG_COLOUR | {b"PLTE", b"tRNS"}
_PNG_NEEDED: Final = frozenset((b"IHDR", b"PLTE", b"IDAT"))
_PNG_CHUNKS: Final = _PNG_BEFORE_PIXELS | _PNG_NEEDED | {b"eXIf", b"acTL"}


def _inflated(content: bytes) -> bytes | None:
    """The profile in an iCCP chunk: name, 0, method 0, deflated profile (section 11.3.2.3)."""
    name, _, rest = content.partition(b"\0")
    if len(name) not in range(1, 80) or rest[:1] != b"\0":
        return None
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(rest[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return plain if inflate.eof else None


_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""Of all but those without a length: stuffed bytes, TEM, restart markers and SOI."""
_END, _SCAN, _APP0, _APP1, _APP2 = 0xD9, 0xDA, 0xE0, 0xE1, 0xE2
_COLOUR_MODELS: Final = {_APP0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
"""Segments that say how to read the samples, how they begin, and the length of their fields."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES: Final = frozenset((*range(0xC0, 0xD0), _END, _SCAN, 0xDB, 0xDD))
"""Frames, Huffman and arithmetic tables, the end, scans, quantisation tables, restart interval."""
_READ: Final = frozenset((*_COLOUR_MODELS, _APP1, _APP2))
_UNREAD: Final = frozenset(range(2, 0xFF)) - _TABLES - frozenset(range(0xD0, 0xD9))
"""Metadata: segments of applications, comments, and codes that nothing in use has."""
_SHORTEST_READ: Final = 10
_SHORT: Final = re.compile(
    rb"(?:[^\xff]++|\xff(?=[\x00\x01\xd0-\xd8\xff])|\xff[%s](?:(?=\x00\x00)|\x00(?:(?=\x01)|%s)))*+"
    % (
        b"".join(b"\\x%02x" % code for code in sorted(_UNREAD)),
        b"|".join(b"\\x%02x.{%d}" % (size, size - 2) for size in range(2, _SHORTEST_READ)),
    ),
    re.DOTALL,
)
"""A run of metadata that is too short to be read, with what lies between."""
_EXIF: Final = b"Exif\0\0"
_PROFILE: Final = b"ICC_PROFILE\0"


def _jpeg(data: bytes) -> Container:
    """Keep the segments that say how to decode, and the scans (ITU-T T.81, section B.1).

    A decoder that finds a marker where its restart markers should be may go on inside of the
    marker's segment; as no segments but tables are kept, it finds no scan there that was not
    counted.
    """
    kept: list[bytes] = []
    models: dict[int, bytes] = {}
    profile: dict[int, bytes] = {}
    exif = size = None
    scans = 0
    for code, start, end in _segments(data):
        if code in _TABLES:
            kept.append(data[start:end])
            scans += code == _SCAN
            if len(kept) > MAX_TABLES or scans > MAX_SCANS:
                raise InvalidImage(
                    f"has more than {MAX_SCANS} scans or {MAX_TABLES} segments; save it anew"
                )
            if code in _FRAMES and size is None:
                height, width = struct.unpack(">HH", data[start + 5 : start + 9])
                size = width, height
        elif scans == 0:
            body = data[start + 4 : end]
            if model := _colour_model(code, body):
                models[code] = model
            elif code == _APP1 and exif is None and body.startswith(_EXIF):
                exif = body.removeprefix(_EXIF)
            elif code == _APP2 and body.startswith(_PROFILE) and len(body) > len(_PROFILE) + 2:
                profile.setdefault(body[len(_PROFILE)], body[len(_PROFILE) + 1 :])
    if size is None:
        raise InvalidImage(DAMAGED)
    parts = b"".join((data[:2], *models.values(), *kept))
    return Container(Format.JPEG, parts, size, _joined(profile), exif, scans=scans)


def _colour_model(code: int, body: bytes) -> bytes | None:
    """The fields of JFIF's or Adobe's segment as one; they may be followed by a thumbnail."""
    name, length = _COLOUR_MODELS.get(code, (b"", 0))
    if not name or not body.startswith(name) or len(body) < length:
        return None
    if code == _APP0:
        body = body[: length - 2] + b"\0\0"  # its sides
    return b"\xff" + bytes((code,)) + struct.pack(">H", 2 + length) + body[:length]


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Code, begin and end of each segment and of the end marker; a scan's with its pixels."""
    at, left = 2, dict.fromkeys(_READ, MAX_READ)
    while marker := _MARKER.search(data, _behind_unread(data, at, left)):
        code, at = data[marker.end() - 1], marker.end()
        if code in left:
            left[code] -= 1
        if code == _END:
            yield code, marker.start(), at
            return
        at += int.from_bytes(data[at : at + 2])
        if code == _SCAN:
            following = _MARKER.search(data, at)
            at = following.start() if following else len(data)
        yield code, marker.start(), at


def _behind_unread(data: bytes, at: int, left: Mapping[int, int]) -> int:
    """Where segments end that nobody reads; a file may have millions of them.

    `left` is how many of each code are still to be read.
    """
    last = len(data) - 4
    while at <= last:
        if short := _SHORT.match(data, at):
            at = short.end()
        if at > last or data[at + 1] not in _UNREAD:
            break
        length = data[at + 2] << 8 | data[at + 3]
        if left.get(data[at + 1]) and length >= _SHORTEST_READ:
            break
        at += 2 + length
    return at


def _joined(parts: Mapping[int, bytes]) -> bytes | None:
    """The profile whose numbered parts these are; each begins with their count (ICC.1, B.4)."""
    counts = {part[0] for part in parts.values()}
    if not parts or counts != {len(parts)} or set(parts) != set(range(1, len(parts) + 1)):
        return None
    return b"".join([parts[number][1:] for number in sorted(parts)])


def _webp(data: bytes) -> Container:
    """Keep the pixels and their alpha (RFC 9649, section 2)."""
    found: dict[bytes, bytes] = {}
    frames = 0
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body, at = at + 8, at + 8 + length + length % 2
        frames += kind == b"ANMF"
        if kind in _WEBP_CHUNKS and kind not in found:
            if body + length > end:
                raise InvalidImage(DAMAGED)
            found[kind] = data[body : body + length]
    if frames > 1:
        raise InvalidImage(ANIMATED)
    pixels = next((kind for kind in (b"VP8 ", b"VP8L") if kind in found), None)
    if frames or pixels is None:
        # A single frame of an animation: its decoder takes it out of the file.
        size, kept = _canvas(found.get(b"VP8X", b"")), _animation(found)
    else:
        size, kept = _frame(pixels, found[pixels]), _still(pixels, found)
    exif = found.get(b"EXIF")
    if exif is not None:
        exif = exif.removeprefix(_EXIF)
    return Container(
        Format.WEBP, kept, size, profile=found.get(b"ICCP"), exif=exif, still=not frames
    )


_WEBP_CHUNKS: Final = {b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L", b"EXIF"}
_HAS_ALPHA, _IS_ANIMATED = 0x10, 0x02


def _canvas(header: bytes) -> tuple[int, int]:
    width, height = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (4, 7))
    if len(header) < 10:  # noqa: PLR2004 - flags and canvas
        raise InvalidImage(DAMAGED)
    return width, height


def _frame(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _still(pixels: bytes, found: Mapping[bytes, bytes]) -> bytes:
    """A WebP file of one picture alone."""
    chunks = [(pixels, found[pixels])]
    if pixels == b"VP8 " and b"ALPH" in found and b"VP8X" in found:
        header = bytes((_HAS_ALPHA,)) + found[b"VP8X"][1:10]
        chunks = [(b"VP8X", header), (b"ALPH", found[b"ALPH"]), *chunks]
    return _webp_file(chunks)


def _animation(found: Mapping[bytes, bytes]) -> bytes:
    """A WebP file of one frame alone."""
    header = found[b"VP8X"]
    header = bytes((header[0] & (_HAS_ALPHA | _IS_ANIMATED),)) + header[1:10]
    frame = [(kind, found[kind]) for kind in (b"ANIM", b"ANMF") if kind in found]
    return _webp_file([(b"VP8X", header), *frame])


def _webp_file(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    content = b"WEBP" + b"".join(_riff_chunk(kind, body) for kind, body in chunks)
    return _riff_chunk(b"RIFF", content)


def _riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _isobmff(data: bytes) -> Container:
    """AVIF or HEIC by the brands of the file (ISO/IEC 14496-12, section 4.3)."""
    length = min(int.from_bytes(data[:4]), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length - 3, 4))}
    if data[8:12] in (b"avis", b"msf1", b"hevc", b"hevx") and not brands & {b"avif", b"mif1"}:
        raise InvalidImage(ANIMATED)
    if brands & {b"avif", b"avis"}:
        return Container(
            Format.AVIF, _METADATA_ITEM.sub(rb"\1free", data), colour=_code_points(data)
        )
    if brands & {b"heic", b"heix", b"heim", b"heis", b"mif1"}:
        return Container(
            Format.HEIC, _METADATA_ITEM.sub(rb"\1free", data), colour=_code_points(data)
        )
    raise UnsupportedMedia(f"is {other_formats.by_brand(data[8:12])}; {SERVED}")


_METADATA_ITEM: Final = re.compile(rb"(infe(?:\x02.{5}|\x03.{7})..)(?:Exif|mime)", re.DOTALL)
"""What says that an item is Exif or XMP (section 8.11.6); decoders pass over unknown types."""


def _code_points(data: bytes) -> dict[bytes, bytes]:
    """The colour description of a file (ISO/IEC 23001-8) as a PNG would have it."""
    at = data.find(b"colrnclx", 0, _HEADER_BYTES) + 8
    primaries, transfer = struct.unpack(">HH", data[at : at + 4].ljust(4, b"\0"))
    if at < len(b"colrnclx") or max(primaries, transfer) > 255:  # noqa: PLR2004 - of one byte
        return {}
    return {b"cICP": bytes((primaries, transfer, 0, 1))}


_HEADER_BYTES: Final = 2**16
