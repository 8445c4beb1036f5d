"""The registry of live workers in Redis: which there are, whether they are warm, how fast they are.

The API reads it for readiness and for estimates. A worker that stops without unregistering leaves
it when its key's time to live ends.
"""

import time
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from redis import Redis

from service.core import redis_keys

TTL_SECONDS: Final = 15


class WorkerInfo(BaseModel):
    """What one worker registers with each heartbeat."""

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


def register(redis: Redis, info: WorkerInfo) -> None:
    """Write or renew a worker's entry. Raises `redis.RedisError`."""
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.set(redis_keys.worker(info.name), info.model_dump_json(), ex=TTL_SECONDS)
        pipeline.zadd(redis_keys.WORKERS, {info.name: info.at})
        pipeline.zremrangebyscore(redis_keys.WORKERS, 0, time.time() - 10 * TTL_SECONDS)
        pipeline.execute()


def is_served(redis: Redis, model: str) -> bool:
    """Whether a live worker serves `model`. Raises `redis.RedisError`."""
    names: Any = redis.zrangebyscore(redis_keys.WORKERS, time.time() - 2 * TTL_SECONDS, "+inf")
    texts = redis.mget([redis_keys.worker(name.decode()) for name in names]) if names else []
    return any(
        model in WorkerInfo.model_validate_json(text).models for text in texts if text is not None
    )


def unregister(redis: Redis, name: str) -> None:
    """Remove a worker that has stopped. Raises `redis.RedisError`."""
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(redis_keys.worker(name))
        pipeline.zrem(redis_keys.WORKERS, name)
        pipeline.execute()
