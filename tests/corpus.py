"""Uploads and bodies that wish the service ill, and odd ones that are honest. All generated.

Each hostile file says which status of the contract it must meet; each honest one says what its
first pixel must be after normalisation.
"""

import pickle
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, PngImagePlugin

from tests import picture_files as files
from tests.picture_files import png_chunk, saved

SIZE = (24, 16)
BOUNDARY = "corpus"


@dataclass(frozen=True)
class HostileFile:
    """Bytes that must be refused with `status`."""

    name: str
    data: bytes
    status: int
    filename: str = "picture.png"
    content_type: str = "image/png"


@dataclass(frozen=True)
class HonestFile:
    """Bytes that must be taken, and their upper left pixel and size once normalised."""

    name: str
    data: bytes
    pixel: tuple[int, int, int]
    size: tuple[int, int] = SIZE
    tolerance: int = 0
    content_type: str = "image/png"


@dataclass(frozen=True)
class HostileBody:
    """A whole body that must be refused with `status`."""

    name: str
    content_type: str
    body: bytes
    status: int


def picture(seed: int = 0) -> Image.Image:
    """A small RGB picture that does not compress away."""
    image = Image.new("RGB", SIZE, (200, 30, 60))
    draw = ImageDraw.Draw(image)
    for number in range(12):
        x, y = (number * 7 + seed) % SIZE[0], (number * 5 + seed) % SIZE[1]
        draw.line((x, y, y, x % SIZE[1]), fill=(number * 20, 255 - number * 9, number * 3))
    image.putpixel((0, 0), (200, 30, 60))
    return image


def png_of(width: int, height: int, pixels: bytes, *extra: bytes) -> bytes:
    """A PNG that claims a size, whatever its data hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *extra,
            png_chunk(b"IDAT", zlib.compress(pixels)),
            png_chunk(b"IEND", b""),
        )
    )


def _animated(kind: str) -> bytes:
    frames = [picture(seed) for seed in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def _webp_claiming(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _jpeg_claiming(width: int, height: int) -> bytes:
    data = saved(picture(), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved(picture(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def _around(jpeg: bytes, data: bytes) -> bytes:
    """A JPEG with an application's segment of `data`."""
    return jpeg[:2] + b"\xff\xef" + struct.pack(">H", 2 + len(data)) + data + jpeg[2:]


def hostile_files() -> list[HostileFile]:
    """Every file that must be refused."""
    png, jpeg, webp, avif = (saved(picture(), kind) for kind in ("PNG", "JPEG", "WEBP", "AVIF"))
    heic = files.heic(picture())
    flipped = bytearray(png)
    flipped[len(flipped) // 2] ^= 0xFF
    kinds = {"GIF": 415, "BMP": 415, "TIFF": 415, "PDF": 415}
    return [
        HostileFile("empty", b"", 400),
        HostileFile("one byte", b"\x89", 400),
        HostileFile("only a PNG signature", png[:8], 400),
        HostileFile("truncated PNG", png[: len(png) * 2 // 3], 400),
        HostileFile("truncated JPEG", jpeg[: len(jpeg) * 2 // 3], 400, content_type="image/jpeg"),
        HostileFile("truncated WebP", webp[: len(webp) * 2 // 3], 400, content_type="image/webp"),
        HostileFile("damaged PNG", bytes(flipped), 400),
        HostileFile("text under a right name", b"hello, I am a picture" * 40, 400),
        HostileFile("pickle", pickle.dumps({"a": picture}), 400),
        *(
            HostileFile(f"{kind} under a right name", saved(picture(), kind), status)
            for kind, status in kinds.items()
        ),
        HostileFile("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', 415),
        HostileFile("XML with SVG", b'<?xml version="1.0"?><svg xmlns="x"/>', 415),
        HostileFile("HTML", b"<!DOCTYPE html><script>alert(1)</script>", 415),
        HostileFile("animated PNG", _animated("PNG"), 400),
        HostileFile("animated WebP", _animated("WEBP"), 400),
        HostileFile("animated GIF", _animated("GIF"), 415),
        HostileFile("PNG header of 50,000 x 50,000", png_of(50_000, 50_000, b"\0" * 99), 400),
        HostileFile("JPEG header of 60,000 x 60,000", _jpeg_claiming(60_000, 60_000), 400),
        HostileFile("JPEG of 1,000 scans", _jpeg_of_scans(1000), 400),
        HostileFile("WebP header of 16,383 x 16,383", _webp_claiming(16_383, 16_383), 400),
        HostileFile("PNG of no pixels", png_of(0, 0, b""), 400),
        HostileFile("PNG of too few pixels", png_of(2000, 2000, b"\0" * 99), 400),
        HostileFile("PNG signature before HTML", b"\x89PNG\r\n\x1a\n<html><script>", 400),
        HostileFile("GIF that is a script", b"GIF89a/*" + b"\0" * 40 + b"*/=1;alert(1)", 415),
        HostileFile("ZIP", b"PK\x03\x04" + bytes(200), 415),
        HostileFile("AVIF of nothing", b"\0\0\0\x1cftypavif" + bytes(200), 400),
        HostileFile("HEIC of nothing", b"\0\0\0\x1cftypheic" + bytes(200), 400),
        HostileFile("animated AVIF", _animated("AVIF"), 400),
        HostileFile("truncated AVIF", avif[: len(avif) * 2 // 3], 400),
        HostileFile("truncated HEIC", heic[: len(heic) * 2 // 3], 400),
        HostileFile(
            "JPEG of 100,000 tables", files.jpeg_with(jpeg, b"\xff\xdb\0\2" * 100_000), 400
        ),
        HostileFile("PNG whose pixels lack", files.png_with(png[:33], png[-12:]), 400),
        HostileFile("PNG of a wrong checksum", png[:-16] + bytes(4) + png[-12:], 400),
        HostileFile("PSD", b"8BPS\0\1" + bytes(99), 415),
        HostileFile("JPEG XL", b"\xff\x0a" + bytes(99), 415),
        HostileFile("raw picture", b"II*\0\x10\0\0\0CR\2\0" + bytes(99), 415),
        HostileFile("MP4", b"\0\0\0\x1cftypisom" + bytes(200), 415),
        HostileFile("RIFF that is sound", b"RIFF\x24\0\0\0WAVEfmt " + bytes(60), 415),
    ]


def _tagged(orientation: int, image: Image.Image, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "HEIF":
        return files.heic(image, exif=exif.tobytes())
    exact = {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    return saved(image, kind, exif=exif, **exact)


def _alpha(mode: str) -> Image.Image:
    image = picture().convert(mode)
    image.putalpha(0)
    return image


def _palette_with_alpha() -> bytes:
    image = picture().quantize(8)
    image.putpixel((0, 0), 3)
    return saved(image, "PNG", transparency=3)


def honest_files() -> list[HonestFile]:
    """Every odd file that must be taken."""
    red = (200, 30, 60)
    png, jpeg = saved(picture(), "PNG"), saved(picture(), "JPEG", quality=98)
    scans = b"\xff\xda" * 500
    marked = picture()
    marked.putpixel((SIZE[0] - 1, 0), (1, 2, 3))
    grey16 = Image.new("I;16", SIZE, 0x8000)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "hello")
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 * 2**20), 9))
    padded = files.srgb_icc() + bytes(3 * 2**20)
    large = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(padded))
    exif = files.segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    cmyk = Image.new("RGB", SIZE, (0, 128, 255)).convert("CMYK")
    white = (255, 255, 255)
    return [
        HonestFile("RGB PNG", png, red),
        HonestFile("PNG called a JPEG", png, red, content_type="image/jpeg"),
        HonestFile("PNG called text", png, red, content_type="text/plain"),
        HonestFile("PNG without a type", png, red, content_type=""),
        HonestFile("JPEG", jpeg, red, tolerance=60),
        HonestFile("WebP", saved(picture(), "WEBP", lossless=True), red),
        HonestFile("progressive JPEG", _jpeg_of_scans(1), red, tolerance=60),
        HonestFile("JPEG around what looks like scans", _around(jpeg, scans), red, tolerance=60),
        HonestFile("JPEG before what looks like scans", jpeg + scans, red, tolerance=60),
        HonestFile("JPEG before a ZIP", jpeg + b"PK\x03\x04" + bytes(50), red, tolerance=60),
        HonestFile("16 bits of grey", saved(grey16, "PNG"), (128, 128, 128)),
        HonestFile("1 bit", saved(Image.new("1", SIZE, 1), "PNG"), white),
        HonestFile("grey", saved(Image.new("L", SIZE, 90), "PNG"), (90, 90, 90)),
        HonestFile("grey with alpha", saved(_alpha("L"), "PNG"), white),
        HonestFile("clear RGBA", saved(_alpha("RGB"), "PNG"), white),
        HonestFile("clear WebP", saved(_alpha("RGB"), "WEBP", lossless=True), white),
        HonestFile(
            "half clear",
            saved(Image.new("RGBA", SIZE, (0, 0, 0, 128)), "PNG"),
            (127, 127, 127),
            tolerance=1,
        ),
        HonestFile("palette", saved(picture().quantize(64), "PNG"), red, tolerance=30),
        HonestFile("palette with alpha", _palette_with_alpha(), white),
        HonestFile("CMYK JPEG", saved(cmyk, "JPEG", quality=98), (0, 128, 255), tolerance=12),
        HonestFile("1 x 1", saved(Image.new("RGB", (1, 1), red), "PNG"), red, size=(1, 1)),
        HonestFile("500 x 20", saved(Image.new("RGB", (500, 20), red), "PNG"), red, (500, 20)),
        HonestFile(
            "interlaced palette",
            saved(picture().quantize(64), "PNG", interlace=1),
            red,
            tolerance=30,
        ),
        HonestFile("mirrored by EXIF", _tagged(2, marked), (1, 2, 3)),
        HonestFile("turned by EXIF", _tagged(8, marked), (1, 2, 3), (SIZE[1], SIZE[0])),
        HonestFile("with text", saved(picture(), "PNG", pnginfo=text), red),
        HonestFile("with a text bomb", files.png_with(png, bomb), red),
        HonestFile("with a large profile", files.png_with(png, large), red),
        HonestFile(
            "JPEG of many Exif segments", files.jpeg_with(jpeg, exif * 3000), red, tolerance=60
        ),
        HonestFile(
            "JPEG that hides scans",
            files.jpeg_with_hidden_scans(3000, SIZE),
            (128,) * 3,
            tolerance=128,
        ),
        HonestFile("AVIF", saved(picture(), "AVIF", quality=95), red, tolerance=60),
        HonestFile("clear AVIF", saved(_alpha("RGB"), "AVIF"), white, tolerance=3),
        HonestFile(
            "AVIF turned by EXIF",
            _tagged(8, marked, "AVIF"),
            (1, 2, 3),
            (SIZE[1], SIZE[0]),
            tolerance=30,
        ),
        HonestFile("HEIC", files.heic(picture()), red, tolerance=30),
        HonestFile(
            "HEIC turned by EXIF",
            _tagged(8, marked, "HEIF"),
            (1, 2, 3),
            (SIZE[1], SIZE[0]),
            tolerance=30,
        ),
    ]


def part(name: str, data: bytes, *, filename: str | None = None, kind: str = "") -> bytes:
    """One part of a multipart body."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    if filename is not None:
        head += f'; filename="{filename}"'
    if kind:
        head += f"\r\nContent-Type: {kind}"
    return head.encode() + b"\r\n\r\n" + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def hostile_bodies() -> list[HostileBody]:
    """Every body that must be refused, apart from the very large ones."""
    image = part("image", saved(picture(), "PNG"), filename="a.png", kind="image/png")
    thousand = b"".join(part(f"field{number}", b"x") for number in range(1000))
    nameless = f'--{BOUNDARY}\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n'.encode()
    headerless = f"--{BOUNDARY}\r\n\r\nx\r\n".encode()
    long_header = f"--{BOUNDARY}\r\nX-Long: ".encode() + b"x" * 100_000
    return [
        HostileBody("nothing", "", b"", 400),
        HostileBody("cut off JSON", "application/json", b'{"image": "x', 400),
        HostileBody("JSON without a file", "application/json", b'{"image": "x"}', 422),
        HostileBody("urlencoded", "application/x-www-form-urlencoded", b"image=x", 400),
        HostileBody("no boundary", "multipart/form-data", image + END, 400),
        HostileBody("empty boundary", "multipart/form-data; boundary=", image + END, 400),
        HostileBody("wrong boundary", "multipart/form-data; boundary=other", image + END, 400),
        HostileBody("endless boundary", f"multipart/form-data; boundary={'b' * 5000}", image, 400),
        HostileBody("cut off in a file", MULTIPART, image[:-20], 400),
        HostileBody("no closing boundary", MULTIPART, image, 400),
        HostileBody("garbage", MULTIPART, bytes(range(256)) * 20, 400),
        HostileBody("nameless part", MULTIPART, nameless + image + END, 400),
        HostileBody("part without headers", MULTIPART, headerless + END, 400),
        HostileBody("endless part header", MULTIPART, long_header, 400),
        HostileBody(
            "name that is not UTF-8",
            MULTIPART,
            image.replace(b'name="image"', b'name="im\xff"') + END,
            400,
        ),
        HostileBody("no parts", MULTIPART, END, 422),
        HostileBody("no image", MULTIPART, part("prompt", b"x") + END, 422),
        HostileBody("a thousand fields", MULTIPART, image + thousand + END, 422),
        HostileBody("nine images", MULTIPART, image * 9 + END, 422),
        HostileBody(
            "five control images",
            MULTIPART,
            image + image.replace(b'"image"', b'"control_image"') * 5 + END,
            422,
        ),
        HostileBody("a field twice", MULTIPART, image + part("steps", b"5") * 2 + END, 422),
        HostileBody(
            "text that is not UTF-8", MULTIPART, image + part("prompt", b"\xff") + END, 422
        ),
        HostileBody("an endless text", MULTIPART, image + part("prompt", b"x" * 40_000) + END, 413),
        HostileBody("too long a text", MULTIPART, image + part("prompt", b"x" * 2001) + END, 422),
    ]


def endless_body(total_bytes: int) -> Iterator[bytes]:
    """A body with one file that goes on for `total_bytes`, in pieces."""
    yield part("image", b"", filename="a.png")[:-2] + b"\x89PNG\r\n\x1a\n"
    piece = bytes(64 * 1024)
    for _ in range(total_bytes // len(piece)):
        yield piece
    yield b"\r\n" + END
