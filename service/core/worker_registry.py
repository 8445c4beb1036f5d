"""What the workers say of themselves in Redis: who is there, warm, and how fast.

The API reads it for readiness and for queue estimates. A worker that is gone is forgotten by
the key's time to live.
"""

import time
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis import Redis

from service.core import redis_keys

PRESENCE_SECONDS = 15


class Presence(BaseModel):
    """One worker's last sign of life."""

    model_config = ConfigDict(frozen=True)

    name: str
    ready: bool
    models: tuple[str, ...]
    device: str
    slots: int
    running: int
    row_steps_per_second: float
    """Measured rate of the worker at full batches; 0 until it has been measured."""
    at: float


def announce(redis: Redis, presence: Presence) -> None:
    """Write a worker's sign of life. Raises `redis.RedisError`."""
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.set(
            redis_keys.worker(presence.name), presence.model_dump_json(), ex=PRESENCE_SECONDS
        )
        pipeline.zadd(redis_keys.WORKERS, {presence.name: presence.at})
        pipeline.zremrangebyscore(redis_keys.WORKERS, 0, time.time() - 10 * PRESENCE_SECONDS)
        pipeline.execute()


def is_served(redis: Redis, model: str) -> bool:
    """Whether a live worker says that it serves `model`. Raises `redis.RedisError`."""
    names: Any = redis.zrangebyscore(redis_keys.WORKERS, time.time() - 2 * PRESENCE_SECONDS, "+inf")
    texts = redis.mget([redis_keys.worker(name.decode()) for name in names]) if names else []
    return any(
        model in Presence.model_validate_json(text).models for text in texts if text is not None
    )


def withdraw(redis: Redis, name: str) -> None:
    """Remove a worker that has stopped. Raises `redis.RedisError`."""
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(redis_keys.worker(name))
        pipeline.zrem(redis_keys.WORKERS, name)
        pipeline.execute()
