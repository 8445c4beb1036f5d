"""The PNG writer of the API and the workers loses nothing."""

import io
import random

import pytest
from PIL import Image

from service.core import png


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (64, 64), (333, 257), (1, 500), (500, 1)])
@pytest.mark.parametrize("strip_pixels", [64, 2**20])
@pytest.mark.parametrize("content", ["noise", "flat"])
def test_every_pixel_comes_back(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], strip_pixels: int, content: str
) -> None:
    monkeypatch.setattr(png, "STRIP_PIXELS", strip_pixels)
    count = size[0] * size[1]
    pixels = (
        random.Random(1).randbytes(3 * count) if content == "noise" else bytes((7, 8, 9)) * count
    )
    written = Image.open(io.BytesIO(png.encode(Image.frombytes("RGB", size, pixels))))
    written.load()
    assert (written.format, written.mode, written.size) == ("PNG", "RGB", size)
    assert written.tobytes() == pixels


def test_flat_pictures_are_small_and_noise_is_not_blown_up() -> None:
    side = 512
    flat = png.encode(Image.new("RGB", (side, side), "red"))
    noise = random.Random(2).randbytes(side * side * 3)
    assert len(flat) < 10_000
    assert len(png.encode(Image.frombytes("RGB", (side, side), noise))) < len(noise) * 1.06


def test_texts_come_back_in_every_script() -> None:
    chunks = [
        png.text_chunk("plain", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        png.text_chunk("wide", "\N{ROCKET} a\nb"),
        png.international_text_chunk("XML:com.adobe.xmp", "<x/>"),
    ]
    opened = Image.open(io.BytesIO(png.encode(Image.new("RGB", (2, 2)), chunks=chunks)))
    assert opened.text == {
        "plain": "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "wide": "\N{ROCKET} a\nb",
        "XML:com.adobe.xmp": "<x/>",
    }
