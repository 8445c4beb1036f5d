"""Embeddings kept in Redis, so that one worker's encoding serves the others.

It stores bytes and returns bytes. A lost entry costs a little time, so no error is raised. Redis
also holds the jobs and must not be filled: all embeddings together keep to a number of bytes, and
those used longest ago are removed first.
"""

from typing import Final

import structlog
from redis import Redis, RedisError

from service.core import redis_keys, redis_server

logger = structlog.get_logger(__name__)

_KEYS: Final = [
    redis_keys.EMBEDDINGS,
    redis_keys.EMBEDDINGS_LAST_USE,
    redis_keys.EMBEDDINGS_TOTAL_BYTES,
]


class RedisEmbeddingStore:
    """The second level of the embedding cache (`workers.engine.api.EmbeddingStore`)."""

    def __init__(self, redis: Redis, *, keep_seconds: int, most_bytes: int) -> None:
        self._keep_seconds = keep_seconds
        self._most_bytes = most_bytes
        self._put = redis.register_script(redis_keys.load_script("embedding_put"))
        self._get = redis.register_script(redis_keys.load_script("embedding_get"))

    def get(self, fingerprint: str) -> bytes | None:
        """The bytes stored under a fingerprint, `None` where there are none or Redis fails.

        A hit is kept for another `keep_seconds`.
        """
        try:
            found = self._get(keys=_KEYS, args=[fingerprint, self._keep_seconds])
        except RedisError as error:
            logger.warning("embedding not read from Redis", cause=redis_server.explain(error))
            return None
        return found if isinstance(found, bytes) else None

    def put(self, fingerprint: str, data: bytes) -> None:
        """Store bytes under a fingerprint for `keep_seconds` after their last use."""
        try:
            self._put(keys=_KEYS, args=[fingerprint, data, self._keep_seconds, self._most_bytes])
        except RedisError as error:
            logger.warning("embedding not written to Redis", cause=redis_server.explain(error))
