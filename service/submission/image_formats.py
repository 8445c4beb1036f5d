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

SERVED: Final = "PNG, JPEG, WebP, AVIF and HEIC are served"
ANIMATED: Final = "is animated; send a still picture"
MAX_SCANS: Final = 100
"""Of a progressive JPEG; encoders write some ten. Each costs as much as all pixels."""
MAX_TABLES: Final = 1000
"""Segments of a JPEG that are no metadata; encoders write a few for each scan."""
MAX_PROFILE_BYTES: Final = 16 * 2**20
"""Of a colour profile once it is inflated; a larger one is ignored."""


@dataclass(frozen=True, slots=True)
class Container:
    """What a decoder needs of one file, and what tells how its pixels are meant."""

    format: Format
    data: bytes
    """The file without metadata; an AVIF or HEIC file as it is."""
    size: tuple[int, int] | None = None
    """Width and height as the file claims them, `None` where only its decoder can tell."""
    profile: bytes | None = None
    """The ICC profile as embedded."""
    exif: bytes | None = None
    """The Exif block, which begins with its TIFF header."""
    colour: Mapping[bytes, bytes] = field(default_factory=dict)
    """What a PNG's cICP, sRGB, cHRM and gAMA chunks hold; cICP of AVIF and HEIC likewise."""
    scans: int = 1
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
    kind = _other_kind(data[:512])
    if kind is not None:
        raise UnsupportedMedia(f"is {kind}; {SERVED}")
    raise InvalidImage(f"is not a picture; {SERVED}")


def _png(data: bytes) -> Container:
    """Keep header, palette and pixels; their data become one chunk with a checked content."""
    found: dict[bytes, bytes] = {}
    pixels = bytearray()
    view, at, end = memoryview(data), len(SIGNATURE), len(data)
    while at + 12 <= end:
        length = int.from_bytes(view[at : at + 4])
        kind = data[at + 4 : at + 8]
        body, at = at + 8, at + 12 + length
        if kind == b"IDAT":
            if at > end or zlib.crc32(view[body - 4 : at - 4]) != int.from_bytes(view[at - 4 : at]):
                raise InvalidImage(DAMAGED)
            pixels += view[body : at - 4]
        elif kind == b"IEND":
            break
        elif kind in _PNG_CHUNKS and kind not in found and at <= end:
            found[kind] = data[body : at - 4]
    header = found.get(b"IHDR", b"")
    if len(header) != 13 or not pixels:  # noqa: PLR2004 - section 11.2.1
        raise InvalidImage(DAMAGED)
    if b"acTL" in found and int.from_bytes(found[b"acTL"][:4]) > 1:
        raise InvalidImage(ANIMATED)
    width, height, bit_depth, colour_type = struct.unpack(">IIBB", header[:10])
    kept = [(b"IHDR", header), (b"IDAT", bytes(pixels)), (b"IEND", b"")]
    if b"PLTE" in found:
        kept.insert(1, (b"PLTE", found[b"PLTE"]))
    return Container(
        Format.PNG,
        SIGNATURE + b"".join([chunk(kind, body) for kind, body in kept]),
        (width, height),
        profile=_inflated(found[b"iCCP"]) if b"iCCP" in found else None,
        exif=found.get(b"eXIf"),
        colour={kind: found[kind] for kind in _PNG_COLOUR if kind in found},
        png=PngFacts(bit_depth, colour_type, found.get(b"tRNS")),
    )


_PNG_COLOUR: Final = (b"cICP", b"sRGB", b"cHRM", b"gAMA")
_PNG_CHUNKS: Final = {b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", *_PNG_COLOUR}


def _inflated(profile: bytes) -> bytes | None:
    """The content of an iCCP chunk: name, 0, method, deflated profile (section 11.3.2.3)."""
    _, _, rest = profile.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(rest[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return plain if inflate.eof else None


_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""Of all but those without a length: stuffed bytes, TEM, restart markers and SOI."""
_END, _SCAN, _APP1, _APP2 = 0xD9, 0xDA, 0xE1, 0xE2
_COLOUR_MODELS: Final = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""Segments that say how to read the samples, and how they begin."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES: Final = frozenset((*range(0xC0, 0xD0), _END, _SCAN, 0xDB, 0xDD))
"""Frames, Huffman and arithmetic tables, the end, scans, quantisation tables, restart interval."""
_METADATA: Final = frozenset((*range(0xE0, 0xF0), 0xFE))
"""Segments of applications, and comments."""
_READ: Final = frozenset((*_COLOUR_MODELS, _APP1, _APP2))
_SHORTEST_READ: Final = 10
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
            if body.startswith(_COLOUR_MODELS.get(code, b"\0\0")):
                models[code] = data[start:end]
            elif code == _APP1 and exif is None and body.startswith(_EXIF):
                exif = body.removeprefix(_EXIF)
            elif code == _APP2 and body.startswith(_PROFILE) and len(body) > len(_PROFILE) + 2:
                profile.setdefault(body[len(_PROFILE)], body[len(_PROFILE) + 1 :])
    if size is None:
        raise InvalidImage(DAMAGED)
    parts = b"".join((data[:2], *models.values(), *kept))
    return Container(Format.JPEG, parts, size, _joined(profile), exif, scans=scans)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Code, begin and end of each segment and of the end marker; a scan's with its pixels."""
    at = 2
    while marker := _MARKER.search(data, _behind_unread(data, at)):
        code, at = data[marker.end() - 1], marker.end()
        if code == _END:
            yield code, marker.start(), at
            return
        at += int.from_bytes(data[at : at + 2])
        if code == _SCAN:
            following = _MARKER.search(data, at)
            at = following.start() if following else len(data)
        yield code, marker.start(), at


def _behind_unread(data: bytes, at: int) -> int:
    """Where segments end that nobody reads; a file may have millions of them."""
    last = len(data) - 4
    while at <= last and data[at] == 0xFF and data[at + 1] in _METADATA:  # noqa: PLR2004 - a marker
        length = data[at + 2] << 8 | data[at + 3]
        if data[at + 1] in _READ and length >= _SHORTEST_READ:
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
        size, kept = _canvas(found.get(b"VP8X", b"")), data
    else:
        size, kept = _frame(pixels, found[pixels]), _still(pixels, found)
    exif = found.get(b"EXIF")
    if exif is not None:
        exif = exif.removeprefix(_EXIF)
    return Container(Format.WEBP, kept, size, profile=found.get(b"ICCP"), exif=exif)


_WEBP_CHUNKS: Final = {b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"VP8L", b"EXIF"}
_HAS_ALPHA: Final = 0x10


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
        header = bytes((_HAS_ALPHA,)) + found[b"VP8X"][1:]
        chunks = [(b"VP8X", header), (b"ALPH", found[b"ALPH"]), *chunks]
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
        return Container(Format.AVIF, data, colour=_code_points(data))
    if brands & {b"heic", b"heix", b"heim", b"heis", b"mif1"}:
        return Container(Format.HEIC, data, colour=_code_points(data))
    named = (name for brand, name in _MOVIES.items() if data[8:12].startswith(brand))
    raise UnsupportedMedia(f"is {next(named, 'an MP4 video')}; {SERVED}")


def _code_points(data: bytes) -> dict[bytes, bytes]:
    """The colour description of a file (ISO/IEC 23001-8) as a PNG would have it."""
    at = data.find(b"colrnclx", 0, _HEADER_BYTES) + 8
    primaries, transfer = struct.unpack(">HH", data[at : at + 4].ljust(4, b"\0"))
    if at < len(b"colrnclx") or max(primaries, transfer) > 255:  # noqa: PLR2004 - of one byte
        return {}
    return {b"cICP": bytes((primaries, transfer, 0, 1))}


_HEADER_BYTES: Final = 2**16

_MOVIES: Final = {
    b"qt": "a QuickTime video",
    b"M4A": "MPEG-4 audio",
    b"3g": "a 3GP video",
    b"crx": "a Canon raw picture",
    b"jp2": "JPEG 2000",
    b"jpx": "JPEG 2000",
    b"jxl": "JPEG XL",
}

_OTHER_KINDS: Final = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"IIRO": "an Olympus raw picture",
    b"IIU\0": "a Panasonic raw picture",
    b"FUJIFILMCCD-RAW": "a Fujifilm raw picture",
    b"8BPS": "PSD",
    b"gimp xcf": "XCF",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"icns": "ICNS",
    b"\0\0\1\0": "ICO",
    b"\0\0\2\0": "CUR",
    b"\xff\x0a": "JPEG XL",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"BPG\xfb": "BPG",
    b"P1\n": "PBM",
    b"P4\n": "PBM",
    b"P2\n": "PGM",
    b"P5\n": "PGM",
    b"P3\n": "PPM",
    b"P6\n": "PPM",
    b"\x1aE\xdf\xa3": "a WebM or Matroska video",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"PK\x03\x04": "ZIP",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x1f\x8b": "gzip",
    b"\x7fELF": "an ELF program",
}


def _other_kind(head: bytes) -> str | None:
    """The true name of a file that is not served, by its first bytes."""
    if head[:4] == b"RIFF":
        return {b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}.get(head[8:12], "RIFF")
    if (kind := _starting(head, _OTHER_KINDS.items())) is not None:
        return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html", b"<script", b"<?xml")):
        return "HTML or XML"
    return None


def _starting(head: bytes, kinds: Iterable[tuple[bytes, str]]) -> str | None:
    return next((kind for magic, kind in kinds if head.startswith(magic)), None)
