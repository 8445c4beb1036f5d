"""The time that is left for what comes in when the process was told to stop.

It knows nothing of what is sent: only that a body which has not come in by then never will.
"""

import asyncio
from typing import Final

from starlette.types import Message, Receive

from service.core.errors import Stopping

AFTERWARDS_SECONDS: Final = 10
"""For what was taken in whole, to be stored and answered."""
RETRY_SECONDS: Final = 5
"""Another process answers by then, or this one again."""


class Grace:
    """Lets requests be received; after `stopping` for so many seconds more."""

    def __init__(self, stopping: asyncio.Event, seconds: float) -> None:
        self._stopping = stopping
        self._seconds = seconds
        self._end: float | None = None
        self._limits: set[asyncio.Timeout] = set()

    async def watch(self) -> None:
        """Wait for the word to stop and set the end of all that is being received."""
        await self._stopping.wait()
        self._end = asyncio.get_running_loop().time() + self._seconds
        for limit in self._limits:
            limit.reschedule(self._end)

    async def receive(self, receive: Receive) -> Message:
        """The next message of a request. Raises `Stopping` where the time is over."""
        limit = asyncio.timeout_at(self._end)
        try:
            async with limit:
                self._limits.add(limit)
                return await receive()
        except TimeoutError:
            raise Stopping(
                "The service is about to stop and the body has not come in; send it again",
                retry_after_seconds=RETRY_SECONDS,
            ) from None
        finally:
            self._limits.discard(limit)
