"""Resources that API keys share: slots that none can take all of, and a semaphore in turns."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairShare:
    """One owner has at most half of the slots that the others leave, or a few if they are free.

    Two owners that want everything get a half and a quarter, a third gets an eighth, and so on.
    """

    def __init__(self, slots: int, *, at_least: int = 1) -> None:
        self._slots = slots
        self._at_least = at_least
        self._taken: Counter[str] = Counter()
        self._total = 0

    def take(self, owner: str) -> bool:
        """Take a slot, if the owner may have another one."""
        if not self.may_take(owner):
            return False
        self._taken[owner] += 1
        self._total += 1
        return True

    def may_take(self, owner: str) -> bool:
        """Whether the owner may have another slot."""
        taken = self._taken[owner]
        left_by_others = self._slots - self._total + taken
        return self._total < self._slots and taken < max(self._at_least, left_by_others // 2)

    def release(self, owner: str) -> None:
        """Return a slot."""
        self._total -= 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]


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
