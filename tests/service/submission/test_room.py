"""The bytes of bodies are counted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.core.errors import Busy
from service.submission.room import Bodies


def test_bodies_are_refused_where_others_fill_the_room() -> None:
    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(10)

    async def read(stream: AsyncIterator[bytes]) -> int:
        return sum([len(chunk) async for chunk in stream])

    async def run() -> None:
        bodies = Bodies(100)
        with bodies.hold() as first, bodies.hold() as second:
            assert await read(first(chunks(6))) == 60
            with pytest.raises(Busy):
                await read(second(chunks(5)))
        with bodies.hold() as third:
            assert await read(third(chunks(10))) == 100

    asyncio.run(run())
