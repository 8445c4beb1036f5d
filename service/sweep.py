"""Deletes what nobody needs any more: pictures of expired jobs, uploads that no job was made of.

A local folder alone is swept. A bucket needs a lifecycle rule of its own (`k8s/README.md`).
"""

import time
from collections.abc import Callable
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from anyio import to_thread

from service.core import redis_keys
from service.core.storage import Storage

ORPHAN_SECONDS: Final = 3600
"""Uploads without a job may belong to a request that is still being taken in; not after this."""
_FOLDERS: Final = ("uploads", "results")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Sweep:
    """One sweep at a time, whichever process comes first."""

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
        """Sweep, unless another process has. Raises `redis.RedisError` and `StorageError`."""
        pause = int(self._every_seconds * 900)
        if not await self._redis.set(redis_keys.SWEEP, "1", nx=True, px=max(1, pause)):
            return
        await self._forget_old_jobs()
        if self._storage.has_lifecycle:
            return
        for folder in _FOLDERS:
            newest = await to_thread.run_sync(self._storage.folders, folder)
            for job_id, modified_at in newest.items():
                if await self._is_over(job_id, modified_at):
                    prefix = f"{folder}/{job_id}"
                    await to_thread.run_sync(self._storage.delete_folder, prefix)
                    log.info("swept", folder=folder, job_id=job_id)

    async def _is_over(self, job_id: str, modified_at: float) -> bool:
        now = self._clock()
        answer: Any = await self._redis.hmget(redis_keys.job(job_id), "status", "expires_at")
        status, expires_at = answer
        if status is None:
            return modified_at < now - ORPHAN_SECONDS
        return expires_at is not None and float(expires_at) <= now

    async def _forget_old_jobs(self) -> None:
        """Owners' lists keep no job whose record is gone."""
        oldest = self._clock() - self._index_seconds
        async for index in self._redis.scan_iter(match=redis_keys.owner_jobs("*"), count=500):
            await self._redis.zremrangebyscore(index, "-inf", oldest)
