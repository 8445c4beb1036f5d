"""Limits per API key: requests per minute and concurrent jobs. Each check is one Lua script."""

import math
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
