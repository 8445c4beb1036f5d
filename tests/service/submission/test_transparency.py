"""Transparent pixels: over white in pictures, black in maps, white in masks."""

import io
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.upload_types import UploadKind
from tests import corpus
from tests import picture_files as files
from tests.service.submission.normalised import near, pixel, read

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


def _painted(mode: str, **options: object) -> bytes:
    """White on black, with transparency that no pixel uses."""
    image = Image.new("L", (8, 8))
    image.putpixel((2, 3), 255)
    return corpus.saved(image.convert(mode), "PNG", **options)


@pytest.mark.parametrize(
    "data",
    [
        _painted("RGBA"),
        _painted("LA"),
        _painted("L", transparency=77),
        _painted("RGB", transparency=(1, 2, 3)),
        _painted("P", transparency=b"\xff" * 256),
        corpus.saved(Image.open(io.BytesIO(_painted("RGBA"))), "WEBP", lossless=True),
    ],
    ids=["RGBA", "LA", "grey key", "RGB key", "palette", "WebP"],
)
def test_a_mask_without_transparent_pixels_is_white_where_it_is_white(data: bytes) -> None:
    """A canvas of a browser saves an alpha channel always: such a mask repainted nothing."""
    seen = read(data, UploadKind.MASK)[1].convert("RGB")
    assert near(seen.getpixel((2, 3)), (255, 255, 255), 1)
    assert near(seen.getpixel((0, 0)), (0, 0, 0), 1)
