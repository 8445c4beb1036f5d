"""What the workers say of themselves in Redis: who is there, warm, and how fast.

The API reads it for readiness and for queue estimates. A worker that is gone is forgotten by
the key's time to live.
"""

import time

from pydantic import BaseModel, ConfigDict
from redis import Redis

from service.core import keys

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
        pipeline.set(keys.worker(presence.name), presence.model_dump_json(), ex=PRESENCE_SECONDS)
        pipeline.zadd(keys.WORKERS, {presence.name: presence.at})
        pipeline.zremrangebyscore(keys.WORKERS, 0, time.time() - 10 * PRESENCE_SECONDS)
        pipeline.execute()


def withdraw(redis: Redis, name: str) -> None:
    """Remove a worker that has stopped. Raises `redis.RedisError`."""
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(keys.worker(name))
        pipeline.zrem(keys.WORKERS, name)
        pipeline.execute()
