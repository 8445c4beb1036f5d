"""The durable list of webhooks that are still to be delivered.

An entry comes in with the transition that ends its job. Whoever takes one owns it for a while; if
that process dies, the entry comes up again, so each webhook is sent at least once.
"""

from typing import Any, Final

import redis.asyncio as aioredis

from service.core import redis_keys, scripts

LEASE_SECONDS: Final = 60


class Outbox:
    """Webhooks by the ids of their jobs. Methods raise `redis.RedisError` where Redis is away."""

    def __init__(self, redis: "aioredis.Redis") -> None:
        self._redis = redis
        self._take = redis.register_script(scripts.load("outbox_take"))
        self._later = redis.register_script(scripts.load("outbox_postpone"))

    async def take(self, most: int) -> list[tuple[str, int]]:
        """(job id, number of this attempt from 1) of entries that are due."""
        answer: Any = await self._take(
            keys=[redis_keys.OUTBOX, redis_keys.OUTBOX_ATTEMPTS], args=[most, LEASE_SECONDS]
        )
        return [(str(answer[at]), int(answer[at + 1])) for at in range(0, len(answer), 2)]

    async def retry(self, job_id: str, seconds: float) -> None:
        """Let an entry come up again later, after an attempt that failed."""
        await self._later(
            keys=[redis_keys.OUTBOX, redis_keys.OUTBOX_ATTEMPTS], args=[job_id, seconds, 0]
        )

    async def defer(self, job_id: str, seconds: float) -> None:
        """Let an entry come up again later; this was no attempt."""
        await self._later(
            keys=[redis_keys.OUTBOX, redis_keys.OUTBOX_ATTEMPTS], args=[job_id, seconds, -1]
        )

    async def remove(self, job_id: str) -> None:
        """Forget an entry for good."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zrem(redis_keys.OUTBOX, job_id)
            pipeline.hdel(redis_keys.OUTBOX_ATTEMPTS, job_id)
            await pipeline.execute()
