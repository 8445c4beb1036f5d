"""The same look is the same colour, whatever profile and format a file has."""

import struct
import zlib

import pytest
from PIL import Image

from service.core.errors import InvalidImage
from tests import corpus
from tests import picture_files as files
from tests.service.submission.normalised import near, pixel

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


def test_a_profile_over_a_mebibyte_counts_in_a_png_as_in_a_webp() -> None:
    primaries, gamma = SPACES["ProPhoto"]
    profile = files.icc(*primaries, gamma)
    profile = struct.pack(">I", 2 * 2**20) + profile[4:] + bytes(2 * 2**20 - len(profile))
    image = Image.new("RGB", (64, 64), _look_in(primaries, gamma))
    for kind in ("PNG", "WEBP", "JPEG"):
        data = corpus.saved(image, kind, icc_profile=profile, quality=100)
        assert near(pixel(data), LOOK, 8), kind


P3_CHUNKS = files.png_chunk(b"gAMA", struct.pack(">I", 45455)) + files.png_chunk(
    b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
)
LINEAR = files.png_chunk(b"gAMA", struct.pack(">I", 100_000))


def _iccp(profile: bytes, start: bytes = b"x\0\0") -> bytes:
    return files.png_chunk(b"iCCP", start + zlib.compress(profile))


@pytest.mark.parametrize(
    "unusable",
    [
        _iccp(b"rubbish" * 30),
        _iccp(files.grey_icc(1.0)),
        _iccp(files.cmyk_icc()),
        _iccp(files.icc(*files.ADOBE, 2.2)[:200]),
        _iccp(files.icc(*files.PROPHOTO, 1.8), b"x\0\7"),
        _iccp(files.icc(*files.PROPHOTO, 1.8), b"\0\0"),
        files.png_chunk(b"iCCP", b"garbage"),
        files.png_chunk(b"cICP", b"\1"),
        files.png_chunk(b"cICP", bytes((2, 2, 0, 1))),
        files.png_chunk(b"cICP", bytes((9, 16, 0, 1))),
        files.png_chunk(b"cICP", bytes((9, 8, 9, 1))),
        files.png_chunk(b"sRGB", b""),
        files.png_chunk(b"sRGB", b"\x09"),
    ],
)
@pytest.mark.parametrize("described", [P3_CHUNKS, LINEAR])
def test_what_cannot_be_used_makes_way_for_the_next_description(
    unusable: bytes, described: bytes
) -> None:
    plain = corpus.saved(Image.new("RGB", (8, 8), (200, 60, 30)), "PNG")
    wanted = pixel(files.png_with(plain, described))
    assert wanted != pixel(plain)
    assert pixel(files.png_with(plain, unusable + described)) == wanted


def test_the_descriptions_of_a_png_have_an_order() -> None:
    """Of the specification, third edition: cICP, iCCP, sRGB, and gAMA with cHRM."""
    plain = corpus.saved(Image.new("RGB", (8, 8), (200, 60, 30)), "PNG")
    pieces = [
        files.png_chunk(b"cICP", bytes((12, 13, 0, 1))),
        _iccp(files.icc(*files.PROPHOTO, 1.8)),
        files.png_chunk(b"sRGB", b"\0"),
        LINEAR,
    ]
    for number, piece in enumerate(pieces):
        wanted = pixel(files.png_with(plain, piece))
        assert pixel(files.png_with(plain, b"".join(pieces[number:]))) == wanted
        assert pixel(files.png_with(plain, b"".join(pieces[:number:-1]) + piece)) == wanted
    srgb = files.png_chunk(b"cICP", bytes((1, 13, 0, 1)))
    assert pixel(files.png_with(plain, srgb + pieces[1])) == pixel(plain)
    same = _iccp(files.srgb_icc())
    assert pixel(files.png_with(plain, same + LINEAR)) == pixel(plain)


def test_a_broken_chrm_leaves_the_gamma() -> None:
    plain = corpus.saved(Image.new("RGB", (8, 8), (200, 60, 30)), "PNG")
    broken = files.png_chunk(b"cHRM", bytes(32))
    assert pixel(files.png_with(plain, LINEAR + broken)) == pixel(files.png_with(plain, LINEAR))


@pytest.mark.parametrize(
    "chunk",
    [
        LINEAR,
        P3_CHUNKS,
        _iccp(files.icc(*files.PROPHOTO, 1.8)),
        files.png_chunk(b"cICP", bytes((12, 13, 0, 1))),
        files.png_chunk(b"tRNS", struct.pack(">3H", 200, 60, 30)),
    ],
)
def test_a_chunk_behind_the_pixels_or_with_a_wrong_checksum_says_nothing(chunk: bytes) -> None:
    plain = corpus.saved(Image.new("RGB", (8, 8), (200, 60, 30)), "PNG")
    end = plain.rindex(b"IEND") - 4
    assert pixel(files.png_with(plain, chunk)) != pixel(plain)
    assert pixel(plain[:end] + chunk + plain[end:]) == pixel(plain)
    if chunk is not P3_CHUNKS:
        spoilt = chunk[:-1] + bytes((chunk[-1] ^ 1,))
        assert pixel(files.png_with(plain, spoilt)) == pixel(plain)
        assert pixel(files.png_with(plain, spoilt + chunk)) != pixel(plain)


def test_what_belongs_before_or_behind_the_palette_counts_only_there() -> None:
    rows = [[[0], [1]]] * 2
    palette = files.png_chunk(b"PLTE", bytes((200, 60, 30, 0, 0, 0)))
    clear = files.png_chunk(b"tRNS", b"\0")

    def seen(chunks: bytes) -> tuple[int, ...]:
        return pixel(
            files.png_of_samples(rows, colour_type=files.PALETTE, bit_depth=8, chunks=chunks)
        )

    assert seen(palette) == seen(clear + palette) == seen(palette + LINEAR) == (200, 60, 30)
    assert seen(palette + files.png_chunk(b"tRNS", bytes(3))) == (200, 60, 30)
    assert seen(palette + clear) == seen(clear + palette + clear) == (255, 255, 255)
    assert seen(LINEAR + palette) != (200, 60, 30)


@pytest.mark.parametrize(
    "chunks", [b"", files.png_chunk(b"PLTE", b"ab"), files.png_chunk(b"PLTE", bytes(3))[:-1] + b"x"]
)
def test_a_palette_picture_without_a_sound_palette_is_damaged(chunks: bytes) -> None:
    data = files.png_of_samples([[[0]]], colour_type=files.PALETTE, bit_depth=8, chunks=chunks)
    with pytest.raises(InvalidImage, match="damaged"):
        pixel(data)
