"""Embeddings kept in Redis, so that one worker's encoding serves the others.

Bytes in, bytes out; what they mean is the engine's business. Losing one costs a little time, so
no error leaves here. A Redis that holds jobs must not be filled by them: together they have so many
bytes, and those used longest ago go first.
"""

import structlog
from redis import Redis, RedisError

from service.core import redis_keys

logger = structlog.get_logger(__name__)

# KEYS: last uses, sizes, entry. ARGV: fingerprint, bytes, seconds, most bytes, prefix of entries
_PUT = """
local now = tonumber(redis.call('TIME')[1])
local function forget(name)
  local size = redis.call('HGET', KEYS[2], name)
  redis.call('ZREM', KEYS[1], name)
  if size then
    redis.call('HDEL', KEYS[2], name)
    redis.call('HINCRBY', KEYS[2], 'total', -tonumber(size))
  end
end
forget(ARGV[1])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[3]))) do
  forget(name)
end
local size = #ARGV[2]
if size > tonumber(ARGV[4]) then return end
while tonumber(redis.call('HGET', KEYS[2], 'total') or 0) + size > tonumber(ARGV[4]) do
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not oldest then break end
  redis.call('DEL', ARGV[5] .. oldest)
  forget(oldest)
end
redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], size)
redis.call('HINCRBY', KEYS[2], 'total', size)
"""

# KEYS: last uses, entry. ARGV: fingerprint, seconds
_GET = """
local found = redis.call('GETEX', KEYS[2], 'EX', ARGV[2])
if found then redis.call('ZADD', KEYS[1], 'XX', redis.call('TIME')[1], ARGV[1]) end
return found
"""


class RedisEmbeddingStore:
    """The second level of the embedding cache (`workers.engine.api.EmbeddingStore`)."""

    def __init__(self, redis: Redis, *, keep_seconds: int, most_bytes: int) -> None:
        self._keep_seconds = keep_seconds
        self._most_bytes = most_bytes
        self._put = redis.register_script(_PUT)
        self._get = redis.register_script(_GET)

    def get(self, fingerprint: str) -> bytes | None:
        """Return the bytes stored under a fingerprint, `None` where there are none or no Redis.

        A hit is kept for another while, so what is used stays.
        """
        try:
            found = self._get(
                keys=[redis_keys.EMBEDDINGS_USED, redis_keys.embedding(fingerprint)],
                args=[fingerprint, self._keep_seconds],
            )
        except RedisError as error:
            logger.warning("embedding not read from Redis", cause=type(error).__name__)
            return None
        return found if isinstance(found, bytes) else None

    def put(self, fingerprint: str, data: bytes) -> None:
        """Store bytes under a fingerprint for a while; what was used longest ago makes room."""
        entry = redis_keys.embedding(fingerprint)
        try:
            self._put(
                keys=[redis_keys.EMBEDDINGS_USED, redis_keys.EMBEDDINGS_BYTES, entry],
                args=[
                    fingerprint,
                    data,
                    self._keep_seconds,
                    self._most_bytes,
                    redis_keys.embedding(""),
                ],
            )
        except RedisError as error:
            logger.warning("embedding not written to Redis", cause=type(error).__name__)
