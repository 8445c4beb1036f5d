"""Uploads become one upright sRGB picture each, or a clear error."""

import hashlib
import io
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core import png
from service.core.errors import InvalidImage, ServiceError, UnsupportedMedia
from service.core.upload_types import Format, UploadKind
from service.submission import images
from tests import corpus
from tests import picture_files as files
from tests.service.submission.normalised import near, read, stored

MAX_PIXELS = 40_000_000
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("file", corpus.hostile_files(), ids=lambda file: file.name)
def test_a_hostile_file_is_refused_with_its_status(file: corpus.HostileFile) -> None:
    with pytest.raises(ServiceError) as caught:
        read(file.data)
    assert caught.value.status == file.status
    assert "/" not in caught.value.detail
    assert "Traceback" not in caught.value.detail


@pytest.mark.parametrize("file", corpus.honest_files(), ids=lambda file: file.name)
def test_an_odd_but_honest_file_is_accepted_with_its_pixels(file: corpus.HonestFile) -> None:
    picture, seen = read(file.data)
    assert seen.size == file.size == (picture.width, picture.height)
    found = seen.getpixel((0, 0))
    assert near(found, file.pixel, file.tolerance), found


@pytest.mark.parametrize("file", corpus.honest_files(), ids=lambda file: file.name)
def test_the_hash_is_that_of_the_stored_file(file: corpus.HonestFile) -> None:
    picture, content = stored(file.data)
    assert picture.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_fit_file_is_kept_as_it_came_but_for_its_metadata(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    bare = corpus.saved(corpus.picture(), kind)
    sent = corpus.saved(corpus.picture(), kind, exif=exif, icc_profile=files.srgb_icc())
    assert b"where I live" in sent
    picture, content = stored(sent)
    assert picture.format == kind
    assert len(content) <= len(bare)
    assert b"where I live" not in content
    assert not set(Image.open(io.BytesIO(content)).info) & {"exif", "icc_profile"}
    assert read(sent)[1].tobytes() == Image.open(io.BytesIO(bare)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("name", "data", "kept"),
    [
        ("opaque alpha", corpus.saved(corpus.picture().convert("RGBA"), "PNG"), Format.PNG),
        ("grey JPEG", corpus.saved(corpus.picture().convert("L"), "JPEG"), Format.JPEG),
        ("palette", corpus.saved(corpus.picture().quantize(8), "PNG"), Format.PNG),
        ("lossless WebP", corpus.saved(corpus.picture(), "WEBP", lossless=True), Format.WEBP),
    ],
)
def test_other_files_that_are_fit_are_kept(name: str, data: bytes, kept: Format) -> None:
    picture, content = stored(data)
    assert picture.format is kept, name
    assert len(content) <= len(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_metadata_does_not_change_the_hash(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    bare = corpus.saved(corpus.picture(), kind)
    told = corpus.saved(corpus.picture(), kind, exif=exif, icc_profile=files.srgb_icc())
    assert read(bare)[0].sha256 == read(told)[0].sha256


def test_a_picture_at_the_pixel_limit_is_accepted_and_one_above_it_is_not() -> None:
    data = corpus.saved(Image.new("RGB", (40, 25)), "PNG")
    images.normalise(data, io.BytesIO(), kind=UploadKind.PICTURE, max_pixels=1000)
    with pytest.raises(InvalidImage, match="40 x 25"):
        images.normalise(data, io.BytesIO(), kind=UploadKind.PICTURE, max_pixels=999)


def _many(kind: str) -> list[tuple[str, bytes]]:
    """Files of a small picture with metadata of every size and number."""
    bomb = zlib.compress(bytes(80 * 2**20), 9)
    large = random.Random(3).randbytes(3 * 2**19)
    profile = files.srgb_icc() + large
    picture = corpus.saved(corpus.picture(), kind)
    if kind == "PNG":
        chunk = files.png_chunk
        extra = {
            "a profile over 1 MiB": chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)),
            "a profile bomb": chunk(b"iCCP", b"x\0\0" + bomb),
            "a broken profile": chunk(b"iCCP", b"x\0\0garbage"),
            "a text bomb": chunk(b"zTXt", b"Comment\0\0" + bomb),
            "an iTXt bomb": chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
            "a broken text": chunk(b"zTXt", b"Comment\0\0garbage") + chunk(b"iTXt", b""),
            "60 MiB of text": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) * 60,
            "many chunks": chunk(b"tEXt", b"a\0b") * 50_000,
            "a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
            "a broken Exif block": chunk(b"eXIf", b"MM\0*" + b"\xff" * 60_000),
            "a broken date": chunk(b"tIME", b"") + chunk(b"pHYs", b"") + chunk(b"bKGD", b""),
        }
        return [(name, files.png_with(picture, chunks)) for name, chunks in extra.items()]
    if kind == "JPEG":
        part = files.segment
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"
        parts = [large[at : at + 65_000] for at in range(0, len(large), 65_000)]
        count = len(parts)
        numbered = (b"ICC_PROFILE\0" + bytes((i, count)) + p for i, p in enumerate(parts, 1))
        extra = {
            "a profile over 1 MiB": b"".join(part(0xE2, data) for data in numbered),
            "a profile in pieces that do not fit": part(0xE2, b"ICC_PROFILE\0\2\1x") * 3,
            "many Exif segments": part(0xE1, exif) * 20_000,
            "long Exif segments": part(0xE1, exif + b"x" * 60_000) * 100,
            "a broken Exif block": part(0xE1, b"Exif\0\0MM\0*" + b"\xff" * 60_000),
            "an Exif block that is cut off": part(0xE1, b"Exif\0\0M"),
            "many comments": part(0xFE, b"x") * 100_000,
            "segments of every application": b"".join(part(0xE0 + i, b"abc") for i in range(16)),
            "XMP in many parts": part(0xE1, b"http:" + b"x" * 60_000) * 60,
        }
        return [(name, files.jpeg_with(picture, segments)) for name, segments in extra.items()]
    chunk = files.riff_chunk
    # Its flags say that there are a profile, Exif and XMP; its canvas is the picture's.
    head = chunk(
        b"VP8X", b"\x2c\0\0\0" + b"".join((n - 1).to_bytes(3, "little") for n in corpus.SIZE)
    )
    extra = {
        "a profile over 1 MiB": head + chunk(b"ICCP", large),
        "a broken Exif block": head + chunk(b"EXIF", b"MM\0*" + b"\xff" * 60_000),
        "many chunks": head + chunk(b"abcd", b"x") * 100_000,
        "a large XMP": head + chunk(b"XMP ", large),
    }
    return [(name, files.webp_with(picture, chunks)) for name, chunks in extra.items()]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_metadata_never_decides_whether_a_picture_is_good(kind: str) -> None:
    wanted = read(corpus.saved(corpus.picture(), kind))[0]
    for name, data in _many(kind):
        assert len(data) < 20 * 2**20, name
        picture, content = stored(data)
        assert picture == wanted, name
        assert len(content) < 3000, name


# Orientation

XMP_TURNED = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
TURNED = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)


def _exif(*tags: bytes, extra: bytes = b"") -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4) + extra


def _with_exif(kind: str, exif: bytes) -> bytes:
    plain = corpus.saved(Image.new("RGB", (8, 4), (200, 60, 30)), kind)
    if kind == "PNG":
        return files.png_with(plain, files.png_chunk(b"eXIf", exif))
    if kind == "JPEG":
        return files.jpeg_with(plain, files.segment(0xE1, b"Exif\0\0" + exif))
    head = files.riff_chunk(b"VP8X", b"\x08\0\0\0" + b"\7\0\0\3\0\0")
    return files.webp_with(plain, head + files.riff_chunk(b"EXIF", exif))


ODD_TAGS = {
    "XMP in ASCII": struct.pack("<HHI", 700, 2, 4) + b"a\xff\xfe\0",
    "a negative resolution": struct.pack("<HHII", 0x11A, 10, 1, 40),
    "a width of eight bytes": struct.pack("<HHII", 0x100, 16, 1, 40),
    "an unknown type": struct.pack("<HHII", 0x100, 99, 2**32 - 1, 40),
    "a directory outside": struct.pack("<HHII", 0x8769, 4, 1, 2**32 - 1),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", ODD_TAGS)
def test_tags_beside_the_orientation_do_not_matter(kind: str, name: str) -> None:
    for tags in ((TURNED, ODD_TAGS[name]), (ODD_TAGS[name], TURNED)):
        picture, _ = read(_with_exif(kind, _exif(*tags, extra=struct.pack("<ii", -5, 1) * 9)))
        assert (picture.width, picture.height) == (4, 8)


@pytest.mark.parametrize(
    ("exif", "width"),
    [
        (b"Exif\0\0" + _exif(TURNED), 4),
        (b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0), 4),
        (_exif(struct.pack("<HHII", 0x112, 4, 1, 6)), 4),
        (_exif(struct.pack("<HHII", 0x112, 3, 1, 9)), 8),
        (_exif(struct.pack("<HHII", 0x112, 5, 1, 6)), 8),
        (_exif(TURNED)[:-6], 8),
        (b"II*\0\xff\xff\xff\xff" + _exif(TURNED), 8),
        (b"II+\0" + _exif(TURNED)[4:], 8),
        (b"", 8),
    ],
)
def test_an_orientation_is_read_where_it_can_be(exif: bytes, width: int) -> None:
    picture, _ = read(_with_exif("PNG", exif))
    assert picture.width == width


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "HEIF"])
def test_an_orientation_in_xmp_alone_says_nothing(kind: str) -> None:
    image = Image.new("RGB", (64, 32), (200, 60, 30))
    if kind == "HEIF":
        upright = XMP_TURNED.replace(b'"6"', b'"1"')  # its encoder would turn the picture
        data = files.heic(image, xmp=upright).replace(upright, XMP_TURNED)
    elif kind == "PNG":
        text = files.png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_TURNED)
        data = files.png_with(corpus.saved(image, kind), text)
    else:
        data = corpus.saved(image, kind, xmp=XMP_TURNED)
    assert b"tiff:Orientation" in data
    assert read(data)[1].size == (64, 32)


@pytest.mark.parametrize("start", [b"XXXX", b"MM\0+", bytes(4), b"MM\0*\xff\xff\xff\xff\xff\xff"])
@pytest.mark.parametrize("xmp", [b"", b"<x:xmpmeta", XMP_TURNED])
@pytest.mark.parametrize("orientation", [1, 6])
def test_damaged_metadata_of_an_avif_is_no_damage(
    start: bytes, xmp: bytes, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x010E] = "hello"
    exif[0x0112] = orientation
    image = Image.new("RGB", (64, 32), (200, 60, 30))
    data = corpus.saved(image, "AVIF", exif=exif.tobytes(), **({"xmp": xmp} if xmp else {}))
    at = data.index(b"MM\0*")
    data = data[:at] + start + data[at + len(start) :]
    assert read(data)[1].size == ((64, 32) if orientation == 1 else (32, 64))


def test_metadata_of_a_single_frame_and_of_thumbnails_is_not_stored() -> None:
    still = corpus.saved(Image.new("RGB", (16, 16), (200, 60, 30)), "WEBP", lossless=True)
    chunk, side = files.riff_chunk, b"\x0f\0\0"
    animation = (
        chunk(b"VP8X", b"\x2e\0\0\0" + side * 2),
        chunk(b"ICCP", b"SECRET"),
        chunk(b"ANIM", bytes(6)),
        chunk(
            b"ANMF", bytes(6) + side * 2 + b"\x64\0\0\0" + still[12:] + chunk(b"abcd", b"SECRET")
        ),
        chunk(b"EXIF", b"II*\0SECRET"),
        chunk(b"XMP ", b"SECRET"),
    )
    webp = chunk(b"RIFF", b"WEBP" + b"".join(animation))
    plain = corpus.saved(corpus.picture(), "JPEG")
    jfif = files.segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\x0a\x0a" + b"SECRET" * 50)
    adobe = files.segment(0xEE, b"Adobe\0\x64\0\0\0\0\1SECRET")
    palette = files.png_chunk(b"PLTE", b"SECRET")
    pictures = {
        "a single frame": webp,
        "a thumbnail": plain[:2] + jfif + plain[20:],
        "behind Adobe's fields": files.jpeg_with(plain, adobe),
        "a palette of RGB": files.png_with(corpus.saved(corpus.picture(), "PNG"), palette),
    }
    for name, data in pictures.items():
        assert b"SECRET" in data
        picture, content = stored(data)
        assert b"SECRET" not in content, name
        assert not picture.as_sent, name
        read(data)


@pytest.mark.parametrize(
    "piece",
    [
        *(bytes((0xFF, code, 0, 2)) for code in (0x02, 0xDC, 0xDE, 0xDF, 0xE0, 0xF0, 0xFD, 0xFE)),
        b"\xff\xde\0\0",
        b"\xff\xf0\0\1",
        b"\xff\xde\0\2\xff",
        b"\xff\xe3\0\4\xff\xda",
        files.segment(0xE1, b"12345678"),
        files.segment(0xE1, b"Exif\0\0"),
        files.segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        files.segment(0xE2, b"ICC_PROFILE\0\1\2x"),
    ],
)
def test_millions_of_segments_cost_little(piece: bytes) -> None:
    """A decoder has four seconds to open a file."""
    plain = corpus.saved(corpus.picture(), "JPEG")
    data = files.jpeg_with(plain, piece * (19 * 2**20 // len(piece)))
    began = time.process_time()
    picture, _ = stored(data)
    assert picture == stored(plain)[0]
    assert time.process_time() - began < 3


def test_scans_that_hide_in_another_segment_do_not_reach_a_decoder() -> None:
    data = files.jpeg_with_hidden_scans(300, (64, 64))
    _, content = stored(data)
    assert content.count(b"\xff\xda") <= 12 < data.count(b"\xff\xda")


# Damage


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "AVIF"]),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    keep=st.floats(0, 1),
)
def test_a_damaged_picture_is_accepted_or_refused_but_never_a_fault(
    kind: str, damage: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(corpus.saved(corpus.picture(), kind))
    for place, value in damage:
        data[int(place * len(data))] = value
    try:
        picture, _ = read(bytes(data[: max(1, int(keep * len(data)))]))
    except (InvalidImage, UnsupportedMedia):
        return
    assert picture.width * picture.height <= MAX_PIXELS


@settings(max_examples=150, deadline=None)
@given(
    head=st.sampled_from(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"RIFF\0\0\0\0WEBPVP8X",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
        ]
    ),
    tail=st.binary(max_size=300),
)
def test_arbitrary_bytes_are_never_a_fault(head: bytes, tail: bytes) -> None:
    with pytest.raises((InvalidImage, UnsupportedMedia)):
        read(head + tail)


def test_a_picture_of_endless_side_is_refused() -> None:
    data = corpus.saved(Image.new("L", (1, images.MAX_SIDE + 1)), "PNG")
    with pytest.raises(InvalidImage, match="a side"):
        read(data)


def test_a_picture_made_of_several_strips_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.effect_noise((64, 48), 90).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = corpus.saved(image, "PNG", exif=exif, icc_profile=files.icc(*files.ADOBE, 2.2))
    whole, seen = read(data)
    monkeypatch.setattr(png, "STRIP_PIXELS", 100)
    strips, seen_in_strips = read(data)
    assert strips == whole
    assert seen_in_strips.tobytes() == seen.tobytes()


PEAK = """
import io, sys
from service.submission import images
from service.core.upload_types import UploadKind
def peak():
    lines = open("/proc/self/status").readlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
data = open(sys.argv[1], "rb").read()
before = peak()
picture = images.normalise(data, io.BytesIO(), kind=UploadKind.PICTURE, max_pixels=40_000_000)
print((peak() - before) / (picture.width * picture.height))
"""


@pytest.mark.parametrize(
    ("kind", "mode", "options", "bytes_a_pixel"),
    [
        ("PNG", "RGB", {}, 6),
        ("PNG", "RGBA", {}, 10),
        ("PNG", "I;16", {}, 10),
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}, 13),  # 8 of it are libjpeg's
        ("WEBP", "RGBA", {"lossless": True, "method": 0}, 13),  # 12 of it are libwebp's
        ("AVIF", "RGBA", {"speed": 10}, 15),
    ],
)
def test_a_large_picture_takes_little_more_than_its_pixels(
    tmp_path: Path, kind: str, mode: str, options: dict[str, object], bytes_a_pixel: float
) -> None:
    """The file is small, the picture large; all but the first are turned, transparent and in other
    colours: the worst case."""
    file = tmp_path / "picture"
    if mode != "RGB":
        exif = Image.Exif()
        exif[0x0112] = 6
        profile = files.cmyk_icc() if mode == "CMYK" else files.icc(*files.ADOBE, 2.2)
        options |= {"exif": exif, "icc_profile": profile}
    # It compresses well, so that what is stored of it does not count.
    Image.new(mode, (3200, 3200), None if mode == "I;16" else (9,) * len(mode)).save(
        file, kind, **options
    )
    command = [sys.executable, "-c", PEAK, str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(shown.stdout) < bytes_a_pixel
