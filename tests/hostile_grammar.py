"""Files, bodies and framing made by the grammar of their formats, with values at the edges.

Nothing here is a damaged honest file: `tests/picture_files.py` and `tests/hostile.py` make those.
"""

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator

from service.core.params import GenerateRequest
from tests import corpus
from tests.picture_files import PNG_SIGNATURE, png_chunk, riff_chunk, segment

SIDES = (0, 1, 7, 24, 500, 4000, 8192, 16383, 65535, 65536, 2**31 - 1, 2**32 - 1)
PART_HEADERS = (
    "Content-Type: image/png",
    "Content-Type: multipart/mixed; boundary=inner",
    "Content-Transfer-Encoding: base64",
    "X: y",
    "no colon",
    ": empty",
)
FIELDS = tuple(GenerateRequest.model_fields)


def _data(chance: random.Random, size: int) -> bytes:
    """Pixels: too few, too many or as many as belong to `size`, noise or zeros."""
    size = min(int(size * chance.choice((0, 0.5, 1, 1, 1, 2))), 2**21)
    return chance.randbytes(min(size, 2**16)) if chance.random() < 0.5 else bytes(size)


def png(chance: random.Random) -> bytes:
    """Any header, any chunks in any order, data in any number of pieces."""
    width, height = chance.choice(SIDES), chance.choice(SIDES[:8])
    depth = chance.choice((1, 2, 4, 8, 16, chance.randrange(256)))
    kind = chance.choice((0, 2, 3, 4, 6, chance.randrange(256)))
    methods = [chance.choice((0, 0, 0, 1, 255)) for _ in range(3)]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, *methods))
    packed = zlib.compress(_data(chance, height * (1 + width * 4)), chance.randrange(10))
    cuts = sorted(chance.randrange(len(packed) + 1) for _ in range(chance.randrange(4)))
    pieces = [packed[a:b] for a, b in zip([0, *cuts], [*cuts, len(packed)], strict=True)]
    chunks = [png_chunk(b"IDAT", piece) for piece in pieces]
    for _ in range(chance.randrange(6)):
        name = chance.choice(
            (
                b"PLTE",
                b"tRNS",
                b"gAMA",
                b"cHRM",
                b"sRGB",
                b"iCCP",
                b"cICP",
                b"eXIf",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"sBIT",
                b"bKGD",
                b"pHYs",
                b"zTXt",
                b"iTXt",
                b"ABCD",
                b"IHDR",
            )
        )
        extra = png_chunk(name, chance.randbytes(chance.choice((0, 1, 4, 8, 26, 32, 768, 5000))))
        chunks.insert(chance.randrange(len(chunks) + 1), extra * chance.choice((1, 1, 1, 900)))
    end = chance.choice((png_chunk(b"IEND", b""), b"", png_chunk(b"IEND", b"x") + b"trailing"))
    return PNG_SIGNATURE + header + b"".join(chunks) + end


def jpeg(chance: random.Random) -> bytes:
    """Tables, frames and scans of any number and kind."""
    parts = []
    for _ in range(chance.randint(1, 12)):
        match chance.randrange(7):
            case 0:
                sides = struct.pack(">HH", *(chance.choice(SIDES) & 0xFFFF for _ in range(2)))
                count = chance.choice((1, 3, 4, 255))
                sampling = bytes(chance.choice((0x11, 0x22, 0x41, 0xFF, 0)) for _ in range(count))
                components = b"".join(bytes([n, s, n & 3]) for n, s in enumerate(sampling))
                code = chance.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xDC, 0xDE))
                depth = chance.choice((8, 8, 8, 12, 16))
                parts.append(segment(code, bytes([depth]) + sides + bytes([count]) + components))
            case 1:
                count = chance.choice((1, 2, 3, 4, 200))
                selectors = b"".join(bytes([n, 0x11 * (n & 1)]) for n in range(count))
                spectral = chance.choice((b"\0\x3f\0", b"\x01\x05\x21", b"\xff\xff\xff"))
                scan = segment(0xDA, bytes([count]) + selectors + spectral)
                noise = chance.randbytes(chance.choice((0, 30, 3000))).replace(b"\xff", b"\xff\0")
                parts.append((scan + noise) * chance.choice((1, 1, 80, 2000)))
            case 2:
                parts.append(segment(0xDB, bytes([chance.randrange(4)]) + chance.randbytes(64)))
            case 3:
                counts = bytes(chance.choice((0, 1, 2, 255)) for _ in range(16))
                table = bytes([chance.choice((0, 0x10, 1, 0x11))]) + counts
                parts.append(segment(0xC4, table + chance.randbytes(min(sum(counts), 4000))))
            case 4:
                parts.append(segment(0xDD, chance.randbytes(chance.choice((0, 2, 5)))))
            case 5:
                name = chance.choice((b"JFIF\0", b"Exif\0\0", b"ICC_PROFILE\0\1\2", b"Adobe\0d"))
                parts.append(segment(chance.randrange(0xE0, 0xF0), name + chance.randbytes(40)))
            case _:
                parts.append(b"\xff" + bytes([chance.randrange(256)]))
    return b"\xff\xd8" + b"".join(parts) + chance.choice((b"\xff\xd9", b"", b"\xff\xd9" * 1000))


def webp(chance: random.Random) -> bytes:
    """Chunks of every kind, whose flags and sizes need not be true."""
    chunks = []
    for _ in range(chance.randint(1, 8)):
        sides = [min(chance.choice(SIDES), 2**24 - 1) for _ in range(2)]
        canvas = b"".join(side.to_bytes(3, "little") for side in sides)
        small = [side & 0x3FFF for side in sides]
        name, data = chance.choice(
            (
                (b"VP8X", bytes([chance.randrange(256), 0, 0, 0]) + canvas),
                (b"VP8L", b"\x2f" + struct.pack("<I", small[0] | small[1] << 14)),
                (b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", *small)),
                (b"ANIM", bytes(6)),
                (b"ANMF", bytes(6) + canvas + bytes(4)),
                (b"ALPH", bytes([chance.randrange(256)])),
                (b"ICCP", b""),
                (b"EXIF", b"II*\0"),
            )
        )
        chunks.append(riff_chunk(name, data + chance.randbytes(chance.choice((0, 1, 500, 9000)))))
    whole = riff_chunk(b"RIFF", b"WEBP" + b"".join(chunks))
    size = chance.choice((len(whole) - 8, len(whole) - 8, 0, 4, 2**32 - 1))
    return whole[:4] + struct.pack("<I", size) + whole[8:]


def heif(chance: random.Random) -> bytes:
    """Boxes within boxes, with sizes that need not be true, and any brand."""
    brand = chance.choice((b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"))
    return _box(chance, b"ftyp", brand + bytes(4) + brand + b"mif1") + b"".join(
        _boxes(chance, 0) for _ in range(chance.randint(1, 4))
    )


def _boxes(chance: random.Random, depth: int) -> bytes:
    name = chance.choice(
        (
            b"meta",
            b"hdlr",
            b"pitm",
            b"iloc",
            b"iinf",
            b"infe",
            b"iprp",
            b"ipco",
            b"ispe",
            b"pixi",
            b"hvcC",
            b"av1C",
            b"colr",
            b"irot",
            b"iref",
            b"idat",
            b"mdat",
            b"moov",
            b"free",
            b"grid",
        )
    )
    if depth < 4 and chance.random() < 0.6:
        inside = b"".join(_boxes(chance, depth + 1) for _ in range(chance.randrange(4)))
        return _box(chance, name, bytes(4 * chance.randrange(2)) + inside)
    sides = struct.pack(">III", 0, chance.choice(SIDES), chance.choice(SIDES))
    data = chance.choice((sides, chance.randbytes(chance.choice((0, 4, 60, 4000)))))
    return _box(chance, name, data)


def _box(chance: random.Random, name: bytes, data: bytes) -> bytes:
    size = chance.choice((8 + len(data),) * 6 + (0, 1, 7, 2**31, 2**32 - 1))
    large = struct.pack(">Q", 2**63) if size == 1 else b""
    return struct.pack(">I", size) + name + large + data


PICTURES: tuple[Callable[[random.Random], bytes], ...] = (png, jpeg, webp, heif)


def _value(chance: random.Random, depth: int = 0) -> object:
    """A JSON value of any type."""
    picked = chance.randrange(9)
    if picked == 0 and depth < 30:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if picked == 1 and depth < 30:
        return {chance.choice(FIELDS): _value(chance, depth + 1) for _ in range(2)}
    numbers = (0, -1, 1e308, 2**32 - 1, 2**64, 10**400, 0.1, 7.5)
    texts = ("", "\0", "\ud83d\ude00" * 30, "x" * 3000, "1,2,3", "NaN", " \u200b\n", "../../etc")
    return chance.choice((*numbers, *texts, None, True, float("nan"), float("inf")))


def json_body(chance: random.Random, files: list[bytes]) -> bytes:
    """An object of known fields with values of any type, pictures as `data:` URIs."""

    def uri() -> str:
        kind = chance.choice(("image/png", "image/jpeg", "text/html", "", "a;b=c"))
        coded = base64.b64encode(chance.choice(files)).decode()
        return f"data:{kind};base64,{coded}{chance.choice(('', '', '=', '%', ' '))}"

    body: dict[str, object] = {
        chance.choice(FIELDS): _value(chance) for _ in range(chance.randrange(6))
    }
    if chance.random() < 0.8:
        body["image"] = chance.choice((uri(), [uri()], [uri()] * 9, {"url": uri()}))
    whole = json.dumps(body)
    if chance.random() < 0.1:
        whole = whole[:-1] + ', "steps": 3, "steps": 4' + "}" * chance.randrange(3)
    if chance.random() < 0.05:
        whole = "[" * chance.choice((50, 100_000)) + whole
    return whole.encode(chance.choice(("utf-8", "utf-8", "utf-8", "utf-16")))


def form(chance: random.Random, files: list[bytes]) -> bytes:
    """A multipart body whose parts have any headers, in any order, with any line ends."""
    parts = []
    for _ in range(chance.randint(1, 6)):
        name = chance.choice((*FIELDS, "image", "image", "image", "", "x" * 300, 'a"b', "é\0"))
        lines = [f'Content-Disposition: form-data; name="{name}"']
        is_file = chance.random() < 0.6
        if is_file:
            lines[0] += chance.choice(
                (
                    '; filename="a.png"',
                    "; filename=",
                    '; filename="../../a"',
                    "; filename*=UTF-8''%e2%82%ac",
                    '; filename="a"; filename="b"',
                )
            )
        lines += chance.choices(PART_HEADERS, k=chance.choice((0, 0, 1, 2, 40)))
        if chance.random() < 0.1:
            chance.shuffle(lines)
        data = chance.choice(files) if is_file else str(_value(chance)).encode(errors="replace")
        end = chance.choice(("\r\n",) * 6 + ("\n", "\r"))
        head = end.join([f"--{corpus.BOUNDARY}", *lines, "", ""]).encode(errors="replace")
        parts.append(head + data + end.encode())
    before = chance.choice((b"",) * 5 + (b"preamble\r\n", corpus.END))
    after = chance.choice((corpus.END,) * 5 + (b"", corpus.END * 2, corpus.END + bytes(2000)))
    return before + b"".join(parts) + after


def in_pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """A body in pieces of any size, for `Transfer-Encoding: chunked`."""
    at = 0
    while at < len(data):
        size = chance.choice((1, 2, 100, 5000, 2**17)) if at < 1000 else 2**17
        yield data[at : at + size]
        at += size


def chunked_request(path: str, data: bytes, chance: random.Random) -> bytes:
    """A request whose chunks, extensions and trailers are right or nearly so."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {corpus.MULTIPART}\r\n"
    coding = chance.choice(("chunked", "chunked", "chunked", "Chunked", "gzip, chunked", "chunke"))
    whole = [head.encode(), f"Transfer-Encoding: {coding}\r\n\r\n".encode()]
    for piece in in_pieces(data, chance):
        size = f"{len(piece):x}" if chance.random() < 0.97 else chance.choice(("-1", "g", "f" * 20))
        extension = chance.choice(("",) * 8 + (";a=b", ";" + "x" * 300, " "))
        whole += [f"{size}{extension}\r\n".encode(), piece]
        whole.append(b"\r\n" if chance.random() < 0.98 else chance.choice((b"\n", b"", b"\r")))
    trailers = b"".join(b"T%d: x\r\n" % n for n in range(chance.choice((0, 0, 0, 3, 90, 5000))))
    return b"".join(whole) + b"0\r\n" + trailers + b"\r\n"
