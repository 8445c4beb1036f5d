"""A semaphore that API keys share fairly: whoever waits is served in turn with the other keys."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """As `asyncio.Semaphore`; one owner's waiters are behind each other, not before another's."""

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[None]:
        """Wait for a permit, and hold it within the context."""
        await self._acquire(owner)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, owner: str) -> None:
        if self._permits:
            self._permits -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the permit came with the cancellation
                self._release()
            raise

    def _release(self) -> None:
        """Hand the permit to the first waiter of the owner who was served longest ago."""
        while self._waiting:
            owner, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[owner] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._permits += 1
