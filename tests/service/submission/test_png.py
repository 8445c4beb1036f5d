"""What is stored of an upload is the very picture that was decoded."""

import io
import random

import pytest
from PIL import Image

from service.submission import images, png


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (64, 64), (333, 257), (1, 500), (500, 1)])
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_every_pixel_comes_back(size: tuple[int, int], kind: str) -> None:
    count = size[0] * size[1] * 3
    raw = random.Random(1).randbytes(count) if kind == "noise" else bytes([7, 8, 9]) * (count // 3)
    written = Image.open(io.BytesIO(png.encode(raw, *size)))
    written.load()
    assert (written.format, written.mode, written.size) == ("PNG", "RGB", size)
    assert written.tobytes() == raw


def test_flat_pictures_are_stored_small_and_noise_is_not_blown_up() -> None:
    side = 512
    flat = png.encode(bytes(side * side * 3), side, side)
    noise = png.encode(random.Random(2).randbytes(side * side * 3), side, side)
    assert len(flat) < 10_000
    assert len(noise) < side * side * 3 * 1.01


@pytest.mark.parametrize("side", [100, images.QUICK_PIXELS])
def test_small_and_large_uploads_are_stored_without_loss(side: int) -> None:
    """A picture over the bound takes the other way to its PNG, with the same pixels."""
    width, height = (100, 100) if side == 100 else (256, side // 256 + 1)
    image = Image.new("RGB", (width, height), (1, 2, 3))
    image.putpixel((1, height - 1), (200, 100, 50))
    sent = io.BytesIO()
    image.save(sent, "PNG")
    sent.seek(0)
    stored = images.read(sent, max_pixels=width * height)
    assert Image.open(io.BytesIO(stored.png)).tobytes() == image.tobytes()
