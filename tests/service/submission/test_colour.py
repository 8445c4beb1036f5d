"""The same look is the same colour, whatever profile and format a file has."""

import struct

import pytest
from PIL import Image

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
