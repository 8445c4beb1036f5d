"""Bounds the bytes of bodies that are held at once, in memory or temporary files."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from service.core.errors import Busy

BUSY_SECONDS: Final = 5
"""After so long a body that found no room may be sent again."""

Counted = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
"""A stream of chunks that are counted as they pass."""


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
