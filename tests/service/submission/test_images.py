"""Uploads become one upright RGB picture each, or a clear error."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.errors import InvalidImage, ServiceError, UnsupportedMedia
from service.submission import images
from tests import corpus

MAX_PIXELS = 40_000_000
ROOT = Path(__file__).parents[2]


def read(data: bytes) -> tuple[images.Picture, Image.Image]:
    """The normalised picture and its stored PNG, opened again."""
    picture = images.read(io.BytesIO(data), max_pixels=MAX_PIXELS)
    stored = Image.open(io.BytesIO(picture.png), formats=["PNG"])
    stored.load()
    return picture, stored


@pytest.mark.parametrize("file", corpus.hostile_files(), ids=lambda file: file.name)
def test_a_hostile_file_is_refused_with_its_status(file: corpus.HostileFile) -> None:
    with pytest.raises(ServiceError) as caught:
        read(file.data)
    assert caught.value.status == file.status
    assert "/" not in caught.value.detail
    assert "Traceback" not in caught.value.detail


@pytest.mark.parametrize("file", corpus.honest_files(), ids=lambda file: file.name)
def test_an_odd_but_honest_file_is_taken_with_its_pixels(file: corpus.HonestFile) -> None:
    picture, stored = read(file.data)
    assert stored.mode == "RGB"
    assert stored.size == file.size == (picture.width, picture.height)
    pixel = stored.getpixel((0, 0))
    assert all(abs(a - b) <= file.tolerance for a, b in zip(pixel, file.pixel, strict=True)), pixel


def test_nothing_of_the_upload_but_its_pixels_is_stored() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    data = corpus.saved(corpus.picture(), "JPEG", exif=exif, comment=b"secret", icc_profile=b"x")
    picture, stored = read(data)
    assert not stored.info
    assert b"where I live" not in picture.png
    assert b"secret" not in picture.png


def test_the_same_pixels_have_the_same_hash_in_every_lossless_format() -> None:
    hashes = {
        read(data)[0].pixels_sha256
        for data in (
            corpus.saved(corpus.picture(), "PNG"),
            corpus.saved(corpus.picture(), "PNG", optimize=True),
            corpus.saved(corpus.picture().convert("RGBA"), "PNG"),
            corpus.saved(corpus.picture(), "WEBP", lossless=True),
        )
    }
    image = corpus.picture()
    expected = hashlib.sha256(b"%dx%d:" % image.size + image.tobytes()).hexdigest()
    assert hashes == {expected}


def test_pictures_of_other_shape_with_the_same_bytes_have_other_hashes() -> None:
    tall, wide = (Image.new("RGB", size, "red") for size in ((2, 8), (8, 2)))
    assert (
        read(corpus.saved(tall, "PNG"))[0].pixels_sha256
        != read(corpus.saved(wide, "PNG"))[0].pixels_sha256
    )


def test_a_picture_at_the_pixel_limit_is_taken_and_one_above_it_is_not() -> None:
    data = corpus.saved(Image.new("RGB", (40, 25)), "PNG")
    images.read(io.BytesIO(data), max_pixels=1000)
    with pytest.raises(InvalidImage, match="40 x 25"):
        images.read(io.BytesIO(data), max_pixels=999)


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
    pixel = read(corpus.saved(source, "PNG"))[1].getpixel((0, 0))
    assert all(abs(a - b) <= 1 for a, b in zip(pixel, expected, strict=True))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    keep=st.floats(0, 1),
)
def test_a_damaged_picture_is_taken_or_refused_but_never_a_fault(
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
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8X"]),
    tail=st.binary(max_size=300),
)
def test_arbitrary_bytes_are_never_a_fault(head: bytes, tail: bytes) -> None:
    with pytest.raises((InvalidImage, UnsupportedMedia)):
        read(head + tail)


PEAK = """
import io, sys
from service import pictures
def peak():
    lines = open("/proc/self/status").readlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
with open(sys.argv[1], "rb") as file:
    picture = pictures.read(file, max_pixels=40_000_000)
print((peak() - before) / (picture.width * picture.height))
"""


@pytest.mark.parametrize(
    ("kind", "mode", "options", "bytes_a_pixel"),
    [
        ("PNG", "RGBA", {}, 9),  # was 16.0
        ("PNG", "I;16", {}, 9),  # 13.2
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}, 13),  # 14.0, 8 of it libjpeg's
        ("WEBP", "RGBA", {"lossless": True, "method": 0}, 13),  # 24.0, 12 of it libwebp's
    ],
)
def test_a_large_picture_takes_little_more_than_its_pixels(
    tmp_path: Path, kind: str, mode: str, options: dict[str, object], bytes_a_pixel: float
) -> None:
    """The file is small, the picture large, on its side and see-through: the worst there is."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "picture"
    # It compresses well, so that what is stored of it does not count.
    Image.new(mode, (4800, 4800), None if mode == "I;16" else (9,) * 4).save(
        file, kind, exif=exif, **options
    )
    command = [sys.executable, "-c", PEAK, str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(told.stdout) < bytes_a_pixel


def test_a_picture_of_endless_side_is_refused() -> None:
    data = corpus.saved(Image.new("L", (1, images.MAX_SIDE + 1)), "PNG")
    with pytest.raises(InvalidImage, match="a side"):
        read(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pixels_are_counted_before_anything_is_decoded(kind: str) -> None:
    data = corpus.saved(Image.new("RGB", (30, 20)), kind)
    assert images.count_pixels(io.BytesIO(data), max_pixels=MAX_PIXELS) == 600


def test_a_picture_made_of_several_strips_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.effect_noise((64, 48), 90).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = corpus.saved(image, "PNG", exif=exif)
    whole, _ = read(data)
    monkeypatch.setattr(images, "_STRIP_PIXELS", 100)
    monkeypatch.setattr(images, "QUICK_PIXELS", 0)
    strips, _ = read(data)
    assert strips.pixels_sha256 == whole.pixels_sha256
    assert (
        Image.open(io.BytesIO(strips.png)).tobytes() == Image.open(io.BytesIO(whole.png)).tobytes()
    )


HELD = """
import sys, threading
from service.submission import images
from service.core import malloc
malloc.trim_freed()
def held():
    lines = open("/proc/self/status").readlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
def look():
    with open(sys.argv[1], "rb") as file:
        images.read(file, max_pixels=40_000_000)
before = held()
for _ in range(3):
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
print(held() - before)
"""


def test_a_large_picture_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "picture"
    Image.new("RGBA", (4800, 4800), (9,) * 4).save(file, "PNG")
    command = [sys.executable, "-c", HELD, str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(told.stdout) < 4800 * 4800, "less than a byte a pixel"
