"""What one key may ask for: requests a minute and jobs at once. Each check is one Lua script.

It knows owners and numbers, not keys or HTTP; the `RateLimit` headers are the one exception.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis

from service.core import redis_keys, scripts
from service.core.errors import RateLimited

MINUTE: Final = 60
RESERVED_SECONDS: Final = 300
"""A place that was taken for a request which then died with its process is free after this."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a quota of requests a minute."""

    quota: int
    remaining: int
    reset_seconds: int
    """Until the quota is whole again."""

    @property
    def headers(self) -> dict[str, str]:
        """`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"requests";q={self.quota};w={MINUTE}',
            "RateLimit": f'"requests";r={self.remaining};t={self.reset_seconds}',
        }


def no_room_headers(most: int, reset_seconds: float) -> dict[str, str]:
    """The same headers for one that has as many jobs as it may, until the first of them ends."""
    return {
        "RateLimit-Policy": f'"jobs";q={most}',
        "RateLimit": f'"jobs";r=0;t={math.ceil(reset_seconds)}',
    }


class Limits:
    """Holds callers to their limits. Methods raise `redis.RedisError` where Redis is away."""

    def __init__(self, redis: "aioredis.Redis") -> None:
        self._redis = redis
        self._pace = redis.register_script(scripts.load("rate_limit"))
        self._reserve = redis.register_script(scripts.load("active_job_reserve"))

    async def spend(self, owner: str, quota: int) -> tuple[Allowance, RateLimited | None]:
        """Count one request; what is left, and the refusal where nothing was."""
        answer: Any = await self._pace(keys=[redis_keys.rate(owner)], args=[quota])
        granted, wait, ahead = (int(number) for number in answer)
        allowance = Allowance(
            quota=quota,
            remaining=max(0, math.floor(quota * (1 - ahead / (MINUTE * 1e6)) + 1e-6)),
            reset_seconds=math.ceil(ahead / 1e6),
        )
        if granted:
            return allowance, None
        refusal = RateLimited(
            f"This key may send {quota} requests a minute", retry_after_seconds=wait / 1e6
        )
        return allowance, refusal

    async def reserve(self, owner: str, job_id: str, most: int) -> bool:
        """Take one of an owner's places for jobs; `False` where all are taken."""
        active = redis_keys.active_jobs(owner)
        return bool(await self._reserve(keys=[active], args=[job_id, most, RESERVED_SECONDS]))

    async def release(self, owner: str, job_id: str) -> None:
        """Give a place back whose request came to nothing."""
        await self._redis.zrem(redis_keys.active_jobs(owner), job_id)
