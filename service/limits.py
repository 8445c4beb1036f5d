"""What an API key may have of what all share.

Requests per minute and concurrent jobs are counted in Redis, each check one Lua script; slots of a
process that no key can take all of, and a semaphore in turns, in its memory.
"""

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis

from service.core import redis_keys
from service.core.errors import RateLimited

MINUTE: Final = 60
RESERVED_SECONDS: Final = 300
"""A reservation of a process that has crashed expires after this time."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The rest of a quota of requests per minute."""

    quota: int
    remaining: int
    reset_seconds: int
    """Until the whole quota is available again."""

    @property
    def headers(self) -> dict[str, str]:
        """`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"requests";q={self.quota};w={MINUTE}',
            "RateLimit": f'"requests";r={self.remaining};t={self.reset_seconds}',
        }


def concurrency_headers(limit: int, reset_seconds: float) -> dict[str, str]:
    """The same headers for a caller at its limit of concurrent jobs."""
    return {
        "RateLimit-Policy": f'"jobs";q={limit}',
        "RateLimit": f'"jobs";r=0;t={math.ceil(reset_seconds)}',
    }


class RateLimits:
    """Enforces the limits of callers. Methods raise `redis.RedisError`."""

    def __init__(self, redis: "aioredis.Redis") -> None:
        self._redis = redis
        self._pace = redis.register_script(redis_keys.load_script("rate_limit"))
        self._reserve = redis.register_script(redis_keys.load_script("active_job_reserve"))

    async def spend(self, owner: str, quota: int) -> tuple[Allowance, RateLimited | None]:
        """Count one request; what is left, and the error where the quota is used up."""
        answer: Any = await self._pace(keys=[redis_keys.rate(owner)], args=[quota])
        granted, wait, ahead = (int(number) for number in answer)
        allowance = Allowance(
            quota=quota,
            remaining=max(0, math.floor(quota * (1 - ahead / (MINUTE * 1e6)) + 1e-6)),
            reset_seconds=math.ceil(ahead / 1e6),
        )
        if granted:
            return allowance, None
        error = RateLimited(quota=quota, retry_after_seconds=wait / 1e6, headers=allowance.headers)
        return allowance, error

    async def reserve(self, owner: str, job_id: str, limit: int) -> bool:
        """Count a job against its owner's limit; `False` where the limit is reached."""
        active = redis_keys.active_jobs(owner)
        return bool(await self._reserve(keys=[active], args=[job_id, limit, RESERVED_SECONDS]))

    async def release(self, owner: str, job_id: str) -> None:
        """Release the reservation of a request that failed."""
        await self._redis.zrem(redis_keys.active_jobs(owner), job_id)


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
