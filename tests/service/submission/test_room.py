"""Large pictures wait for one another, small ones do not wait for them; bodies are counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from service.core.errors import Busy
from service.submission.room import LARGE_PIXELS, SMALL_PIXELS, Bodies, Room


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(1000):
        await asyncio.sleep(0)


async def held_at_once(sizes: list[int]) -> list[int]:
    """The pictures of those that want room which get it while nobody gives any back."""
    room, held = Room(), []

    async def take(pixels: int) -> None:
        async with room.take(pixels):
            held.append(pixels)
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(take(pixels)) for pixels in sizes]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with AsyncExitStack() as stack, asyncio.timeout(10):
        # All of it is free again, also what was waited for in vain.
        await stack.enter_async_context(room.take(LARGE_PIXELS + 1))
        for _ in range(SMALL_PIXELS // LARGE_PIXELS):
            await stack.enter_async_context(room.take(LARGE_PIXELS))
    return held


def test_one_large_picture_at_a_time_and_small_ones_beside_it() -> None:
    large = 40_000_000
    assert asyncio.run(held_at_once([large, large, large, 100, 10_000])) == [large, 100, 10_000]


def test_small_pictures_have_so_many_pixels_together() -> None:
    held = asyncio.run(held_at_once([LARGE_PIXELS, 1] * 20))
    assert sum(held) <= SMALL_PIXELS
    assert len(held) >= 5


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
