"""The durable list of webhooks that are still to be delivered.

An entry comes in with the transition that ends its job. Whoever takes one owns it for a while; if
that process dies, the entry comes up again, so each webhook is sent at least once.
"""

from typing import Any, Final

import redis.asyncio as aioredis

from service.core import redis_keys

LEASE_SECONDS: Final = 60

# KEYS: outbox, attempts. ARGV: most, seconds that the taker has
_TAKE = """
local now = tonumber(redis.call('TIME')[1])
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), id)
  taken[#taken + 1] = id
  taken[#taken + 1] = redis.call('HINCRBY', KEYS[2], id, 1)
end
return taken
"""

# KEYS: outbox, attempts. ARGV: job id, seconds until it is due, change of the attempts
_LATER = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('ZADD', KEYS[1], tonumber(redis.call('TIME')[1]) + tonumber(ARGV[2]), ARGV[1])
  redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[3])
end
"""


class Outbox:
    """Webhooks by the ids of their jobs. Methods raise `redis.RedisError` where Redis is away."""

    def __init__(self, redis: "aioredis.Redis") -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)
        self._later = redis.register_script(_LATER)

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
