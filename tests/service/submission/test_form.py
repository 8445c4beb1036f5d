"""Bodies are read the same however the network cuts them up."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.errors import TooLarge
from service.submission.form import Form, Shape, read_form
from tests import corpus

SHAPE = Shape(frozenset({"prompt", "steps"}), {"image": 2}, 10_000_000, 1_000_000)


def read(body: bytes, cuts: list[int], shape: Shape = SHAPE) -> Form:
    """Read a body that comes in pieces."""
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(places):
            yield body[start:end]

    return asyncio.run(read_form(corpus.MULTIPART, pieces(), shape))


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(max_size=60),
    data=st.binary(max_size=400).filter(lambda data: b"--corpus" not in data),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_texts_and_files_come_through_unchanged(text: str, data: bytes, cuts: list[int]) -> None:
    body = (
        corpus.part("prompt", text.encode(), filename="a text with a name")
        + corpus.part("image", data)
        + corpus.part("image", data * 2, filename="../../x", kind="text/html")
        + corpus.END
        + b"and an epilogue"
    )
    with read(body, cuts) as form:
        assert form.texts == {"prompt": text}
        assert [upload.content.read() for upload in form.files["image"]] == [data, data * 2]
        assert [upload.size_bytes for upload in form.files["image"]] == [len(data), 2 * len(data)]
        files = [upload.content for upload in form.files["image"]]
    assert all(file.closed for file in files)


def test_limits_hold_at_the_byte() -> None:
    body = corpus.part("image", bytes(1000), filename="a") + corpus.END
    exact = Shape(frozenset(), {"image": 1}, len(body), 1000)
    with read(body, [], exact) as form:
        assert form.size_bytes == len(body)
    with pytest.raises(TooLarge, match="image"):
        read(body, [], Shape(frozenset(), {"image": 1}, len(body), 999))
    with pytest.raises(TooLarge, match="body"):
        read(body, [], Shape(frozenset(), {"image": 1}, len(body) - 1, 1000))


def test_a_body_over_a_limit_is_not_read_further() -> None:
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        for piece in corpus.endless_body(50_000_000):
            pulled += len(piece)
            yield piece

    with pytest.raises(TooLarge):
        asyncio.run(read_form(corpus.MULTIPART, endless(), SHAPE))
    assert pulled < SHAPE.max_file_bytes + 2 * 64 * 1024
