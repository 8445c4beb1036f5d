"""Asks whether the storage answers, for all who want to know: once at a time, and not every time.

Anybody may ask whether the service is ready, and each look at the storage writes an object.
"""

import asyncio
import time
from typing import Final

from anyio import CapacityLimiter, to_thread

from service.core.storage import Storage, StorageError

PATIENCE_SECONDS: Final = 8
"""A dependency that has not answered by then counts as away."""
REMEMBERED_SECONDS: Final = 1.0


class StorageProbe:
    """What was found lately, or is found now."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._asking = asyncio.Lock()
        self._thread = CapacityLimiter(1)
        self._found = False
        self._found_at = -REMEMBERED_SECONDS

    async def answers(self) -> bool:
        """Whether the storage takes an object and gives it back."""
        async with self._asking:
            if time.monotonic() - self._found_at > REMEMBERED_SECONDS:
                self._found = await self._ask()
                self._found_at = time.monotonic()
            return self._found

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await to_thread.run_sync(
                    self._storage.check, abandon_on_cancel=True, limiter=self._thread
                )
        except (StorageError, TimeoutError):
            return False
        return True
