"""Uploads become one upright sRGB picture each, or a clear error."""

import hashlib
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core import png
from service.core.errors import InvalidImage, ServiceError, UnsupportedMedia
from service.core.upload_types import Format, Picture, UploadKind
from service.submission import images
from tests import corpus
from tests import picture_files as files

MAX_PIXELS = 40_000_000
ROOT = Path(__file__).parents[3]


def stored(data: bytes, kind: UploadKind = UploadKind.PICTURE) -> tuple[Picture, bytes]:
    """What is stored of an upload."""
    out = io.BytesIO()
    picture = images.normalise(data, out, kind=kind, max_pixels=MAX_PIXELS)
    assert bool(out.getvalue()) != picture.as_sent
    return picture, data if picture.as_sent else out.getvalue()


def read(data: bytes, kind: UploadKind = UploadKind.PICTURE) -> tuple[Picture, Image.Image]:
    """The normalised picture, and what a worker reads of it."""
    picture, content = stored(data, kind)
    return picture, Image.open(io.BytesIO(content), formats=[picture.format]).convert("RGB")


def pixel(data: bytes, kind: UploadKind = UploadKind.PICTURE) -> tuple[int, ...]:
    """The upper left pixel that a worker reads."""
    return read(data, kind)[1].getpixel((0, 0))


def near(found: tuple[int, ...], wanted: tuple[int, ...], tolerance: int) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


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


# Colour profiles

LOOK = (90, 130, 180)
"""In sRGB."""


def _look_in(primaries: tuple[tuple[float, float], ...], gamma: float) -> tuple[int, int, int]:
    """The values of LOOK in another RGB space, by its definition."""
    numpy = pytest.importorskip("numpy")
    linear = [
        (v / 255 / 12.92) if v <= 0.04045 * 255 else ((v / 255 + 0.055) / 1.055) ** 2.4
        for v in LOOK
    ]

    def matrix(of: tuple[tuple[float, float], ...]) -> object:
        columns = numpy.array([[x / y, 1.0, (1 - x - y) / y] for x, y in of]).T
        white = numpy.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * numpy.linalg.solve(columns, white)

    there = numpy.linalg.solve(matrix(primaries), matrix(files.SRGB) @ numpy.array(linear))
    return tuple(round(255 * max(0.0, value) ** (1 / gamma)) for value in there)


SPACES = {
    "Adobe RGB": (files.ADOBE, 2.2),
    "Display P3 with a plain curve": (files.DISPLAY_P3, 2.2),
    "ProPhoto": (files.PROPHOTO, 1.8),
    "linear sRGB": (files.SRGB, 1.0),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("space", SPACES)
def test_the_same_look_is_the_same_colour_in_every_profile_and_format(
    kind: str, space: str
) -> None:
    primaries, gamma = SPACES[space]
    image = Image.new("RGB", (64, 64), _look_in(primaries, gamma))
    profile = files.icc(*primaries, gamma)
    if kind == "HEIF":
        data = files.heic(image, icc_profile=profile)
    else:
        best = {} if kind == "PNG" else {"quality": 100}
        best |= {"JPEG": {"subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
        data = corpus.saved(image, kind, icc_profile=profile, **best)
    # JPEG and the like round in another space, and a wide space has few values for a colour.
    assert near(pixel(data), LOOK, 8), pixel(data)


def test_a_palette_and_grey_have_their_profiles_too() -> None:
    primaries, gamma = SPACES["Adobe RGB"]
    palette = Image.new("RGB", (8, 8), _look_in(primaries, gamma)).quantize(4)
    data = corpus.saved(palette, "PNG", icc_profile=files.icc(*primaries, gamma))
    assert near(pixel(data), LOOK, 2)
    grey = corpus.saved(Image.new("L", (8, 8), 55), "PNG", icc_profile=files.grey_icc(1.0))
    assert near(pixel(grey), (128,) * 3, 2)
    grey_alpha = Image.new("LA", (8, 8), (55, 255))
    data = corpus.saved(grey_alpha, "PNG", icc_profile=files.grey_icc(1.0))
    assert near(pixel(data), (128,) * 3, 2)


def test_inks_are_converted_by_their_profile() -> None:
    inks = Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    plain = pixel(corpus.saved(inks, "JPEG", quality=100))
    profiled = pixel(corpus.saved(inks, "JPEG", quality=100, icc_profile=files.cmyk_icc()))
    assert near(plain, (0, 0, 0), 2)
    assert near(profiled, (188, 188, 188), 8)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"broken"),
        ("RGB", files.icc(*files.ADOBE, 2.2)[:200]),
        ("RGB", bytes(20_000)),
        ("RGB", files.grey_icc(1.0)),
        ("RGB", files.cmyk_icc()),
        ("L", files.icc(*files.PROPHOTO, 1.0)),
        ("CMYK", files.icc(*files.PROPHOTO, 1.0)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_broken_or_foreign_profile_is_ignored(mode: str, profile: bytes, kind: str) -> None:
    if (mode == "CMYK" and kind != "JPEG") or (mode, kind) == ("L", "WEBP"):
        pytest.skip("the format has no such pixels")
    image = Image.new(mode, (16, 16), LOOK[1] if mode == "L" else (*LOOK, 0)[: len(mode)])
    options = {"quality": 95} if kind == "JPEG" else {}
    data = corpus.saved(image, kind, icc_profile=profile, **options)
    assert pixel(data) == pixel(corpus.saved(image, kind, **options))


def test_what_a_png_says_of_its_colours_without_a_profile_counts() -> None:
    p3 = Image.new("RGB", (8, 8), _look_in(files.DISPLAY_P3, 2.2))
    plain = corpus.saved(p3, "PNG")
    xy = (31270, 32900, *(round(v * 100_000) for point in files.DISPLAY_P3 for v in point))
    chunks = files.png_chunk(b"gAMA", struct.pack(">I", 45455))
    chunks += files.png_chunk(b"cHRM", struct.pack(">8I", *xy))
    assert near(pixel(files.png_with(plain, chunks)), LOOK, 5)
    cicp = files.png_chunk(b"cICP", bytes((12, 13, 0, 1)))
    assert near(pixel(files.png_with(plain, cicp)), LOOK, 5)
    srgb = files.png_chunk(b"sRGB", b"\0") + chunks
    assert pixel(files.png_with(plain, srgb)) == pixel(plain)
    linear = Image.new("RGB", (8, 8), _look_in(files.SRGB, 1.0))
    gamma = files.png_chunk(b"gAMA", struct.pack(">I", 100_000))
    assert near(pixel(files.png_with(corpus.saved(linear, "PNG"), gamma)), LOOK, 8)
    usual = files.png_chunk(b"gAMA", struct.pack(">I", 45455))
    assert pixel(files.png_with(plain, usual)) == pixel(plain)
    for odd in (b"cICP", b"cHRM", b"gAMA"):
        for content in (b"", b"\xff" * 32, bytes(32)):
            assert pixel(files.png_with(plain, files.png_chunk(odd, content))) == pixel(plain)


# Transparency

KINDS = [
    (colour_type, bit_depth)
    for colour_type, depths in {
        files.GREY: (1, 2, 4, 8, 16),
        files.RGB: (8, 16),
        files.PALETTE: (1, 2, 4, 8),
        files.GREY_ALPHA: (8, 16),
        files.RGB_ALPHA: (8, 16),
    }.items()
    for bit_depth in depths
]
TABLE = [
    (colour_type, bit_depth, transparent)
    for colour_type, bit_depth in KINDS
    for transparent in ((False, True) if colour_type < files.GREY_ALPHA else (False,))
]


def _samples(colour_type: int, bit_depth: int) -> list[list[list[int]]]:
    """A picture of samples from the whole range, its rows of an uneven length."""
    chance = random.Random(colour_type * 100 + bit_depth)
    most = 2**bit_depth - 1
    rows = [
        [[chance.randint(0, most) for _ in range(files.SAMPLES[colour_type])] for _ in range(13)]
        for _ in range(9)
    ]
    if bit_depth == 16:
        rows[0][1] = [value ^ 1 for value in rows[0][0]]  # the same in its upper bytes
    rows[8][12] = rows[0][0]
    return rows


def _expected(
    rows: list[list[list[int]]],
    colour_type: int,
    bit_depth: int,
    palette: list[list[int]],
    *,
    clear: bool,
) -> list[tuple[float, ...]]:
    """Every pixel over white, by the PNG specification."""
    most = 2**bit_depth - 1
    pixels = []
    for row in rows:
        for sample in row:
            alpha = 1.0
            if colour_type == files.PALETTE:
                colour = [float(v) for v in palette[sample[0]]]
                alpha = sample[0] % 3 / 2 if clear and sample[0] < len(palette) - 1 else 1.0
            else:
                values = [255 * v / most for v in sample]
                if colour_type >= files.GREY_ALPHA:
                    alpha = values.pop() / 255
                elif clear and sample == rows[0][0]:
                    alpha = 0.0
                colour = values * (3 if len(values) == 1 else 1)
            pixels.append(tuple(alpha * v + (1 - alpha) * 255 for v in colour))
    return pixels


@pytest.mark.parametrize(("colour_type", "bit_depth", "transparent"), TABLE)
def test_every_colour_type_and_depth_is_shown_over_white(
    colour_type: int,
    bit_depth: int,
    transparent: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    rows = _samples(colour_type, bit_depth)
    palette = [[(i * 37) % 256, (i * 91) % 256, 255 - i % 256] for i in range(2**bit_depth)]
    chunks = b""
    if colour_type == files.PALETTE:
        chunks += files.png_chunk(b"PLTE", bytes(v for entry in palette[:256] for v in entry))
        alphas = bytes(round(255 * (i % 3 / 2)) for i in range(len(palette) - 1))
        chunks += files.png_chunk(b"tRNS", alphas) * transparent
    else:
        key = b"".join(struct.pack(">H", value) for value in rows[0][0])
        chunks += files.png_chunk(b"tRNS", key) * transparent
    data = files.png_of_samples(rows, colour_type=colour_type, bit_depth=bit_depth, chunks=chunks)
    seen = read(data)[1]
    expected = _expected(rows, colour_type, bit_depth, palette, clear=transparent)
    found = [seen.getpixel((at % 13, at // 13)) for at in range(13 * 9)]
    wrong = [pair for pair in zip(found, expected, strict=True) if not near(*pair, tolerance=2)]
    assert not wrong


def test_interlaced_pixels_are_compared_with_the_transparent_colour_too() -> None:
    image = Image.new("RGB", (9, 9), "red")
    image.putpixel((4, 4), (0, 0, 255))
    data = corpus.saved(image, "PNG", transparency=(0, 0, 255), interlace=1)
    seen = read(data)[1]
    assert seen.getpixel((4, 4)) == (255, 255, 255)
    assert seen.getpixel((3, 4)) == (255, 0, 0)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["RGB", "RGBA", "L", "LA", "1", "P"]),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    data=st.data(),
)
def test_every_mode_comes_out_as_over_white(
    mode: str, size: tuple[int, int], data: st.DataObject
) -> None:
    colour = data.draw(st.tuples(*[st.integers(0, 255)] * 4))
    source = Image.new("RGBA", size, colour).convert(mode)
    shown = source.convert("RGBA")
    white = Image.new("RGBA", size, "white")
    expected = Image.alpha_composite(white, shown).convert("RGB").getpixel((0, 0))
    assert near(pixel(corpus.saved(source, "PNG")), expected, 1)


# Maps and masks


def _lines_on_nothing(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    image.putpixel((0, 0), (*colour, 255))
    return image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_white_lines_on_nothing_are_a_map_on_black(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    if kind == "AVIF":
        options = {"quality": 100, "subsampling": "4:4:4"}
    data = corpus.saved(_lines_on_nothing((255, 255, 255)), kind, **options)
    seen = read(data, UploadKind.MAP)[1]
    assert near(seen.getpixel((0, 0)), (255, 255, 255), 6)
    assert near(seen.getpixel((6, 6)), (0, 0, 0), 6)
    assert near(read(data)[1].getpixel((6, 6)), (255, 255, 255), 6), "as an image prompt"


def test_the_transparent_colour_of_a_map_is_black_too() -> None:
    data = corpus.saved(Image.new("L", (8, 8), 90), "PNG", transparency=90)
    assert pixel(data, UploadKind.MAP) == (0, 0, 0)
    assert pixel(data) == (255, 255, 255)


def test_a_map_is_numbers_and_no_profile_changes_them() -> None:
    data = corpus.saved(Image.new("L", (8, 8), 55), "PNG", icc_profile=files.grey_icc(1.0))
    assert pixel(data, UploadKind.MAP) == (55, 55, 55)
    assert pixel(
        files.png_with(data, files.png_chunk(b"gAMA", struct.pack(">I", 100_000))), UploadKind.MAP
    ) == (55, 55, 55)


def test_a_map_is_turned_as_its_camera_was() -> None:
    marked = Image.new("RGB", (4, 2))
    marked.putpixel((3, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 8
    seen = read(corpus.saved(marked, "PNG", exif=exif), UploadKind.MAP)[1]
    assert seen.size == (2, 4)
    assert seen.getpixel((0, 0)) == (255, 255, 255)


def test_a_mask_is_white_where_its_file_is_transparent() -> None:
    seen = read(corpus.saved(_lines_on_nothing((255, 255, 255)), "PNG"), UploadKind.MASK)[1]
    assert seen.getpixel((0, 0)) == (0, 0, 0)
    assert seen.getpixel((6, 6)) == (255, 255, 255)
    opaque = corpus.saved(Image.new("L", (8, 8), 200), "PNG")
    assert pixel(opaque, UploadKind.MASK) == (200, 200, 200)


# Metadata


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


def test_a_profile_over_a_mebibyte_counts_in_a_png_as_in_a_webp() -> None:
    primaries, gamma = SPACES["ProPhoto"]
    profile = files.icc(*primaries, gamma)
    profile = struct.pack(">I", 2 * 2**20) + profile[4:] + bytes(2 * 2**20 - len(profile))
    image = Image.new("RGB", (64, 64), _look_in(primaries, gamma))
    for kind in ("PNG", "WEBP", "JPEG"):
        data = corpus.saved(image, kind, icc_profile=profile, quality=100)
        assert near(pixel(data), LOOK, 8), kind


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
