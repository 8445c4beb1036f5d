"""The registry of live workers in Redis: names, models, whether they are warm, how fast they are.

The API reads it for readiness and for estimates. A worker is alive while its entry exists; Redis
removes the entry of one that stops without unregistering, so no other clock matters.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
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
    slots: Annotated[int, Field(ge=0, le=100_000)]
    running: int
    row_steps_per_second: Annotated[float, Field(ge=0, le=1e9)]
    """Measured rate of the worker at full batches; 0 until it has been measured."""
    at: float = 0.0
    """Unused; release 0.1.0 cannot read an entry without it."""


def register(redis: Redis, info: WorkerInfo) -> None:
    """Write or renew a worker's entry. Raises `redis.RedisError`."""
    redis.register_script(redis_keys.load_script("worker_register"))(
        keys=[redis_keys.worker(info.name), redis_keys.WORKERS],
        args=[info.name, info.model_dump_json(), TTL_SECONDS, 10 * TTL_SECONDS],
    )


def read(texts: Iterable[bytes | str | None]) -> list[WorkerInfo]:
    """The live workers of registry entries; a damaged one or another version's is skipped."""
    found = []
    for text in texts:
        with suppress(ValidationError):
            if text is not None:
                found.append(WorkerInfo.model_validate_json(text))
    return found


def is_served(redis: Redis, model: str) -> bool:
    """Whether a live worker serves `model`. Raises `redis.RedisError`."""
    names: Any = redis.zrange(redis_keys.WORKERS, 0, -1)
    texts: Any = (
        redis.mget([redis_keys.worker(name.decode(errors="replace")) for name in names])
        if names
        else []
    )
    return any(model in worker.models for worker in read(texts))


def unregister(redis: Redis, name: str) -> None:
    """Remove a worker that has stopped. Raises `redis.RedisError`."""
    redis.delete(redis_keys.worker(name))
    redis.zrem(redis_keys.WORKERS, name)
