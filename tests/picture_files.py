"""Picture files made piece by piece: chunks, segments and boxes as no encoder writes them."""

import functools
import io
import itertools
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence

from PIL import Image, ImageCms

MOST_BYTES = 4 * 2**20
"""Of what one piece becomes when it is doubled many times."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types of a PNG."""
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a picture in the format `kind`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_samples(
    rows: Sequence[Sequence[Sequence[int]]],
    *,
    colour_type: int,
    bit_depth: int,
    chunks: bytes = b"",
) -> bytes:
    """A PNG of these pixels, each a sequence of samples, with chunks before its pixels."""
    lines = bytearray()
    for row in rows:
        bits = "".join(f"{sample:0{bit_depth}b}" for pixel in row for sample in pixel)
        bits += "0" * (-len(bits) % 8)
        lines += b"\0" + int(bits, 2).to_bytes(len(bits) // 8)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bit_depth, colour_type, 0, 0, 0)
    return b"".join(
        (
            PNG_SIGNATURE,
            png_chunk(b"IHDR", header),
            chunks,
            png_chunk(b"IDAT", zlib.compress(bytes(lines))),
            png_chunk(b"IEND", b""),
        )
    )


def png_with(png: bytes, chunks: bytes) -> bytes:
    """A PNG with further chunks behind its header."""
    return png[:33] + chunks + png[33:]


def segment(code: int, data: bytes) -> bytes:
    """One segment of a JPEG."""
    return b"\xff" + bytes((code,)) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(jpeg: bytes, segments: bytes) -> bytes:
    """A JPEG with further segments behind its first marker."""
    return jpeg[:2] + segments + jpeg[2:]


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a RIFF file."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_with(webp: bytes, chunks: bytes) -> bytes:
    """A WebP with further chunks before its own."""
    return riff_chunk(b"RIFF", b"WEBP" + chunks + webp[12:])


def pieces(data: bytes) -> list[bytes]:
    """A file cut where its format cuts it: chunks, segments or boxes; of others one piece."""
    if data.startswith(PNG_SIGNATURE):
        return _cut(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4]))
    if data.startswith(b"\xff\xd8"):
        starts = [match.start() for match in re.finditer(rb"\xff[\xc0-\xcf\xd9-\xfe]", data)]
        edges = [0, *starts, len(data)]
        return [data[a:b] for a, b in itertools.pairwise(edges)]
    if data[:4] == b"RIFF":
        return _cut(
            data, 12, lambda at: 8 + -(-int.from_bytes(data[at + 4 : at + 8], "little") // 2) * 2
        )
    if data[4:8] == b"ftyp":
        return _cut(data, 0, lambda at: max(8, int.from_bytes(data[at : at + 4])))
    return [data]


def _cut(data: bytes, start: int, length: Callable[[int], int]) -> list[bytes]:
    edges = [0, start] if start else [0]
    while (at := edges[-1]) < len(data):
        edges.append(min(len(data), at + length(at)))
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def rebuilt(data: bytes, chance: random.Random) -> bytes:
    """A file whose pieces were doubled, dropped, moved, flooded or made to lie about themselves.

    The checksums of a PNG are right more often than not, so that damage reaches what is behind.
    """
    parts = [part for part in pieces(data) if part]
    for _ in range(chance.randint(1, 4)):
        if not parts:
            return b""
        at = chance.randrange(len(parts))
        match chance.randrange(6):
            case 0:
                parts.insert(chance.randrange(len(parts)), parts[at])
            case 1:
                del parts[at]
            case 2:
                parts.insert(chance.randrange(len(parts)), parts.pop(at))
            case 3:
                parts[at] *= min(chance.choice((2, 50, 2000)), 1 + MOST_BYTES // len(parts[at]))
            case 4:
                parts.insert(chance.randint(1, len(parts)), _extra(data, chance) or b"x")
            case _:
                changed = bytearray(parts[at])
                for _ in range(chance.randint(1, 3)):
                    changed[chance.randrange(len(changed))] = chance.randrange(256)
                parts[at] = bytes(changed)
    if data.startswith(PNG_SIGNATURE) and chance.random() < 0.7:
        parts = [_checked(part) for part in parts]
    return b"".join(parts)


def _checked(part: bytes) -> bytes:
    return part[:-4] + struct.pack(">I", zlib.crc32(part[4:-4])) if len(part) >= 12 else part


def _extra(data: bytes, chance: random.Random) -> bytes:
    """A piece that does not belong to the picture: a bomb, a flood, a lie."""
    noise = chance.randbytes(chance.choice((0, 9, 3000)))
    if data.startswith(PNG_SIGNATURE):
        kind = chance.choice(
            (
                b"iCCP",
                b"eXIf",
                b"tRNS",
                b"PLTE",
                b"IDAT",
                b"acTL",
                b"gAMA",
                b"cHRM",
                b"cICP",
                b"zTXt",
                b"iTXt",
            )
        )
        return png_chunk(kind, chance.choice((noise, b"x\0\0" + _bomb(), b"x\0\1\0\0\0" + _bomb())))
    if data.startswith(b"\xff\xd8"):
        code = chance.choice((0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0x02))
        start = chance.choice((b"", b"Exif\0\0MM\0*", b"ICC_PROFILE\0\1\1", b"Adobe", b"JFIF\0"))
        return segment(code, start + noise) * chance.choice((1, 1, 500))
    if data[:4] == b"RIFF":
        return riff_chunk(
            chance.choice((b"VP8X", b"ICCP", b"ANMF", b"ALPH", b"EXIF", b"VP8 ")), noise
        )
    size = chance.choice((8 + len(noise), 0, 1, 2**31))
    kind = chance.choice((b"meta", b"moov", b"colr", b"ispe", b"mdat", b"free"))
    return struct.pack(">I", size) + kind + noise


@functools.cache
def _bomb() -> bytes:
    return zlib.compress(bytes(30 * 2**20), 9)


def jpeg_with_hidden_scans(count: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG with `count` empty scans inside of what looks like one segment.

    A decoder that misses a restart marker there goes on at the first of them.
    """
    image = Image.effect_noise(size, 60)
    data = saved(image, "JPEG", progressive=True, restart_marker_rows=1)
    first = data.index(b"\xff\xda")
    scan = segment(0xDA, b"\1\1\0\1\5\2")  # one component, coefficients 1 to 5
    hidden = scan * count
    restart = data.index(b"\xff\xd0", first)
    return data[:restart] + b"\xff\2" + struct.pack(">H", 2 + len(hidden)) + hidden + data[restart:]


def icc(
    red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float], gamma: float
) -> bytes:
    """An ICC profile, version 2, of primaries as x and y under D65 and a power curve."""
    # The columns are found so that white is D50, where ICC profiles want it.
    adapted = _adapted(red, green, blue)
    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(_s15, column)) for name, column in adapted.items()}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + b"".join(map(_s15, D50))
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags[b"cprt"] = b"text\0\0\0\0none\0"
    return _profile(b"RGB ", tags)


def grey_icc(gamma: float) -> bytes:
    """An ICC profile of greys with a power curve."""
    tags = {
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)),
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(_s15, D50)),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
    }
    return _profile(b"GRAY", tags)


def cmyk_icc() -> bytes:
    """An ICC profile of inks, by a table of two values an ink: each is its complement's darkness.

    Black halves the light; it differs plainly from the usual formula.
    """
    grid, columns = b"", list(_adapted(*SRGB).values())
    for index in range(16):
        c, m, y, k = (index >> shift & 1 for shift in (3, 2, 1, 0))
        light = 0.5 if k else 1.0
        linear = [light * (0.1 if ink else 1.0) for ink in (c, m, y)]
        xyz = [
            sum(v * column[i] for v, column in zip(linear, columns, strict=True)) for i in range(3)
        ]
        grid += b"".join(struct.pack(">H", round(32768 * value)) for value in xyz)
    table = b"\0\0\xff\xff"
    lut = b"mft2\0\0\0\0" + bytes((4, 3, 2, 0))
    lut += b"".join(map(_s15, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut += struct.pack(">HH", 2, 2) + table * 4 + grid + table * 3
    tags = {
        b"A2B0": lut,
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(_s15, D50)),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
    }
    return _profile(b"CMYK", tags, kind=b"prtr")


def srgb_icc() -> bytes:
    """The sRGB profile that Pillow makes."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


D50 = (0.9642, 1.0, 0.8249)
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _profile(space: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr") -> bytes:
    start = 132 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data + b"\0" * (-len(data) % 4)
    header = struct.pack(">I", start + len(content)) + bytes(4) + b"\x02\x40\0\0" + kind + space
    header += b"XYZ " + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + b"".join(map(_s15, D50))
    return header.ljust(128, b"\0") + table + content


def _adapted(*primaries: tuple[float, float]) -> dict[bytes, list[float]]:
    """Columns of RGB to XYZ under D50, by Bradford's adaptation of D65."""
    import numpy as np  # noqa: PLC0415 - tests of the API alone go without it

    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = columns * np.linalg.solve(columns, white)
    cone = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    gain = np.diag(cone @ np.array(D50) / (cone @ white))
    adapted = np.linalg.inv(cone) @ gain @ cone @ columns
    return dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T.tolist(), strict=True))


def heic(image: Image.Image, **options: object) -> bytes:
    """The bytes of a picture as HEIC, without loss of colour resolution."""
    import pillow_heif  # noqa: PLC0415 - the other formats need nothing but Pillow

    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=-1, chroma=444, **options)
    return out.getvalue()
