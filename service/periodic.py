"""Work beside the requests: expired files of a local storage, and the health of the storage."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from anyio import CapacityLimiter, to_thread
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from service.core import redis_keys
from service.core.errors import DependencyUnavailable
from service.core.job import read_number
from service.core.redis_server import ServerInfo, explain, is_wrong_type, readable, warn
from service.core.storage import OWNER_MARK, Storage, StorageError
from service.problems import UNAVAILABLE_RETRY_SECONDS

ORPHAN_SECONDS: Final = 3600
"""Younger uploads without a job may belong to a request that is still being processed."""
PROBE_TIMEOUT_SECONDS: Final = 8
"""A dependency that has not answered by then is unavailable."""
PROBE_CACHE_SECONDS: Final = 1.0
_FOLDERS: Final = ("uploads", "results")
_KEYS_AT_ONCE: Final = 1000

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
                cause=explain(error) if isinstance(error, RedisError) else str(error),
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
    ) -> None:
        """`index_seconds` is how long after its creation a job may still be asked for."""
        self._redis = redis
        self._storage = storage
        self._every_seconds = every_seconds
        self._index_seconds = index_seconds

    async def step(self) -> None:
        """Sweep, unless another process did so recently. Raises `RedisError`, `StorageError`."""
        pause = int(self._every_seconds * 900)
        if not await self._redis.set(redis_keys.SWEEP, "1", nx=True, px=max(1, pause)):
            return
        await self._trim_owner_indexes()
        if self._storage.has_lifecycle:
            return
        newest = {
            folder: await to_thread.run_sync(self._storage.folders, folder) for folder in _FOLDERS
        }
        if not await self._owns({job_id for found in newest.values() for job_id in found}):
            log.warning(
                "nothing is swept: the storage folder belongs to jobs that this Redis does not "
                "know. If Redis lost its data for good, delete the file in the folder",
                file=OWNER_MARK,
            )
            return
        before = await to_thread.run_sync(self._storage.now) - ORPHAN_SECONDS
        await to_thread.run_sync(partial(self._storage.delete_partial, before=before))
        await self._sweep_files(before)
        for folder, found in newest.items():
            for job_id, modified_at in found.items():
                if await self._is_expired(job_id, orphaned=modified_at < before):
                    prefix = f"{folder}/{job_id}"
                    await to_thread.run_sync(self._storage.delete_folder, prefix)
                    log.info("deleted expired files", folder=folder, job_id=job_id)

    async def _sweep_files(self, before: float) -> None:
        """Delete files without a record that were written before a time (epoch)."""
        found = await to_thread.run_sync(self._storage.folders, redis_keys.FILES_FOLDER)
        for file_id, written_at in found.items():
            if written_at < before and not await self._redis.exists(redis_keys.file(file_id)):
                prefix = f"{redis_keys.FILES_FOLDER}/{file_id}"
                await to_thread.run_sync(self._storage.delete_folder, prefix)

    async def _owns(self, job_ids: set[str]) -> bool:
        """Whether the files in the folder are of jobs of this Redis: it may have lost its data.

        Both keep the same mark. It is made where the folder is empty, or Redis knows a job in it.
        """
        mark = await to_thread.run_sync(lambda: self._storage.owner_mark)
        known: Any = await self._redis.get(redis_keys.STORAGE_OWNER)
        if mark is not None:
            return bool(mark == known)
        if job_ids and not await self._knows_any(job_ids):
            return False
        if known is None:
            known = secrets.token_hex(16)
            await self._redis.set(redis_keys.STORAGE_OWNER, known)
        await to_thread.run_sync(self._storage.mark_owner, known)
        return True

    async def _knows_any(self, job_ids: set[str]) -> bool:
        names = [name for job_id in job_ids for name in (redis_keys.job(job_id),)]
        for start in range(0, len(names), _KEYS_AT_ONCE):
            if await self._redis.exists(*names[start : start + _KEYS_AT_ONCE]):
                return True
        return False

    async def _is_expired(self, job_id: str, *, orphaned: bool) -> bool:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hmget(redis_keys.job(job_id), "status", "expires_at")
            pipeline.time()
            record, (seconds, _) = readable(await pipeline.execute(raise_on_error=False))
        status, expires_at = record or (None, None)
        if status is None:
            return orphaned
        ends_at = read_number(expires_at)  # a damaged record ends by its own time to live
        return ends_at is not None and ends_at <= seconds

    async def _trim_owner_indexes(self) -> None:
        """Remove jobs whose record has expired from the lists of their owners."""
        seconds, _ = await self._redis.time()
        oldest = seconds - self._index_seconds
        async for index in self._redis.scan_iter(match=redis_keys.owner_jobs("*"), count=500):
            try:
                await self._redis.zremrangebyscore(index, "-inf", oldest)
            except ResponseError as error:
                if not is_wrong_type(error):
                    raise
                log.warning("the list of an owner's jobs is damaged", index=index)


class RedisMonitor:
    """What Redis says of itself, at most a second old: its role, its memory, its policy."""

    def __init__(self, redis: "aioredis.Redis") -> None:
        self._redis = redis
        self._info = ServerInfo()
        self._read_at = -PROBE_CACHE_SECONDS
        self._lock = asyncio.Lock()

    async def info(self) -> ServerInfo:
        """Raises `redis.RedisError`."""
        if self._is_old:
            async with self._lock:
                if self._is_old:  # no other request read it meanwhile
                    info = await read_info(self._redis)
                    if info.evicts and not self._info.evicts:
                        warn(info)
                    self._info, self._read_at = info, time.monotonic()
        return self._info

    async def check_room(self) -> None:
        """Raise `DependencyUnavailable` for a Redis that takes nothing new.

        What is left of its memory is for jobs that were accepted.
        """
        unfit = (await self.info()).unfit
        if unfit is not None:
            raise DependencyUnavailable(
                f"{unfit}; no new jobs or files are accepted",
                retry_after_seconds=UNAVAILABLE_RETRY_SECONDS,
            )

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at > PROBE_CACHE_SECONDS


async def read_info(redis: "aioredis.Redis") -> ServerInfo:
    """`INFO` of a server; the defaults where its user may not call it. Raises `RedisError`."""
    try:
        return ServerInfo.parse(await redis.info())
    except NoPermissionError:
        return ServerInfo()


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
