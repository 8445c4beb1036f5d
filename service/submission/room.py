"""Bounds what is held at once: pixels, for which large pictures wait, and bytes of bodies.

It knows numbers alone. A picture takes its room before it is decoded and gives it back when its PNG
is stored. A body takes its own, in memory or temporary files, while it comes in; too many of them
are refused.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Final

from service.core.errors import Busy

UNIT_PIXELS: Final = 2**16
LARGE_PIXELS: Final = 4 * 2**20
"""Pictures above it go one at a time, for their decoders take up to 12 bytes a pixel."""
SMALL_PIXELS: Final = 5 * LARGE_PIXELS
"""What all others have together."""
BUSY_SECONDS: Final = 5
"""After so long a body that found no room may be sent again."""

Counted = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
"""A stream of chunks that are counted as they pass."""


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


class Bodies:
    """Counts the bytes of all bodies that are held."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = 0

    @contextmanager
    def hold(self) -> Iterator[Counted]:
        """Give what counts a body that comes in; its bytes are free again after the context.

        The counting stream raises `Busy` where there is no room for more.
        """
        own = 0

        async def counted(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            nonlocal own
            async for chunk in body:
                if self._held + len(chunk) > self._most:
                    raise Busy(
                        "Too many bodies are coming in at the moment",
                        retry_after_seconds=BUSY_SECONDS,
                    )
                self._held += len(chunk)
                own += len(chunk)
                yield chunk

        try:
            yield counted
        finally:
            self._held -= own
