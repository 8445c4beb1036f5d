"""Image embeddings kept in Redis, so that one worker's encoding serves the others.

Bytes in, bytes out; what they mean is the engine's business. Losing one costs a little time, so
no error leaves here.
"""

import structlog
from redis import Redis, RedisError

from service.core import keys

logger = structlog.get_logger(__name__)


class RedisEmbeddingStore:
    """The second level of the embedding cache (`workers.engine.types.EmbeddingStore`)."""

    def __init__(self, redis: Redis, *, keep_seconds: int) -> None:
        self._redis = redis
        self._keep_seconds = keep_seconds

    def get(self, fingerprint: str) -> bytes | None:
        """Return the bytes stored under a fingerprint, `None` where there are none or no Redis.

        A hit is kept for another while, so what is used stays.
        """
        try:
            found = self._redis.getex(keys.embedding(fingerprint), ex=self._keep_seconds)
        except RedisError as error:
            logger.warning("embedding not read from Redis", cause=type(error).__name__)
            return None
        return found if isinstance(found, bytes) else None

    def put(self, fingerprint: str, data: bytes) -> None:
        """Store bytes under a fingerprint for a while."""
        try:
            self._redis.set(keys.embedding(fingerprint), data, ex=self._keep_seconds)
        except RedisError as error:
            logger.warning("embedding not written to Redis", cause=type(error).__name__)
