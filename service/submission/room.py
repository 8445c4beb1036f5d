"""Bounds how many pixels are held at once; large pictures wait for their turn.

It knows numbers alone. A picture takes its room before it is decoded and gives it back when its PNG
is stored.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Final

UNIT_PIXELS: Final = 2**16
LARGE_PIXELS: Final = 4 * 2**20
"""Pictures above it go one at a time, for their decoders take up to 12 bytes a pixel."""
SMALL_PIXELS: Final = 5 * LARGE_PIXELS
"""What all others have together."""


class Room:
    """Places for pictures, given in the order in which they were asked for."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(1)
        self._small = asyncio.Semaphore(SMALL_PIXELS // UNIT_PIXELS)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def take(self, pixels: int) -> AsyncIterator[None]:
        """Wait for room for so many pixels, and hold it within the context."""
        if pixels > LARGE_PIXELS:
            async with self._large:
                yield
            return
        with ExitStack() as held:
            async with self._turn:  # two that have half of what they need would wait for ever
                for _ in range(math.ceil(pixels / UNIT_PIXELS)):
                    await self._small.acquire()
                    held.callback(self._small.release)
            yield
