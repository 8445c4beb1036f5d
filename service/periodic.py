"""Work beside the requests: expired files of a local storage, and the health of the storage."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from service.core import redis_keys
from service.core.storage import Storage, StorageError

ORPHAN_SECONDS: Final = 3600
"""Younger uploads without a job may belong to a request that is still being processed."""
PROBE_TIMEOUT_SECONDS: Final = 8
"""A dependency that has not answered by then is unavailable."""
PROBE_CACHE_SECONDS: Final = 1.0
_FOLDERS: Final = ("uploads", "results")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def repeat(step: Callable[[], Awaitable[None]], *, every_seconds: float, name: str) -> None:
    """Run `step` periodically until this task is canceled; a failure is logged."""
    while True:
        try:
            await step()
        except (RedisError, StorageError) as error:
            log.warning(
                "periodic task postponed: a dependency is unavailable",
                task=name,
                cause=type(error).__name__,
            )
        except Exception:
            log.exception("periodic task failed", task=name)
        await asyncio.sleep(every_seconds)


class StorageSweep:
    """Deletes files of expired jobs, and uploads that no job was created for, from a local folder.

    A bucket needs a lifecycle rule of its own (`k8s/README.md`). One process sweeps at a time.
    """

    def __init__(
        self,
        redis: "aioredis.Redis",
        storage: Storage,
        *,
        every_seconds: float,
        index_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`index_seconds` is how long after its creation a job may still be asked for."""
        self._redis = redis
        self._storage = storage
        self._every_seconds = every_seconds
        self._index_seconds = index_seconds
        self._clock = clock

    async def step(self) -> None:
        """Sweep, unless another process did so recently. Raises `RedisError`, `StorageError`."""
        pause = int(self._every_seconds * 900)
        if not await self._redis.set(redis_keys.SWEEP, "1", nx=True, px=max(1, pause)):
            return
        await self._trim_owner_indexes()
        if self._storage.has_lifecycle:
            return
        for folder in _FOLDERS:
            newest = await to_thread.run_sync(self._storage.folders, folder)
            for job_id, modified_at in newest.items():
                if await self._is_expired(job_id, modified_at):
                    prefix = f"{folder}/{job_id}"
                    await to_thread.run_sync(self._storage.delete_folder, prefix)
                    log.info("deleted expired files", folder=folder, job_id=job_id)

    async def _is_expired(self, job_id: str, modified_at: float) -> bool:
        now = self._clock()
        answer: Any = await self._redis.hmget(redis_keys.job(job_id), "status", "expires_at")
        status, expires_at = answer
        if status is None:
            return modified_at < now - ORPHAN_SECONDS
        return expires_at is not None and float(expires_at) <= now

    async def _trim_owner_indexes(self) -> None:
        """Remove jobs whose record has expired from the lists of their owners."""
        oldest = self._clock() - self._index_seconds
        async for index in self._redis.scan_iter(match=redis_keys.owner_jobs("*"), count=500):
            await self._redis.zremrangebyscore(index, "-inf", oldest)


class StorageProbe:
    """Checks whether the storage works: one check at a time, cached for a second.

    Anybody may ask for readiness, and each check writes an object.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = asyncio.Lock()
        self._thread = CapacityLimiter(1)
        self._works = False
        self._checked_at = -PROBE_CACHE_SECONDS

    async def answers(self) -> bool:
        """Whether an object can be written and read back."""
        async with self._lock:
            if time.monotonic() - self._checked_at > PROBE_CACHE_SECONDS:
                self._works = await self._check()
                self._checked_at = time.monotonic()
            return self._works

    async def _check(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                await to_thread.run_sync(
                    self._storage.check, abandon_on_cancel=True, limiter=self._thread
                )
        except (StorageError, TimeoutError):
            return False
        return True
