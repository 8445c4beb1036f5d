"""The queue as the API uses it: bounded, with an estimate of when it accepts jobs again."""

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from anyio import to_thread
from redis.exceptions import RedisError, ResponseError
from rq import Queue

from service.core import redis_keys
from service.core.errors import DependencyUnavailable, QueueFull
from service.core.job import Job
from service.core.queue import enqueue, forget
from service.core.redis_server import explain, is_full, is_read_only, readable
from service.core.transitions import Transitions
from service.jobs.eta import Estimates
from service.jobs.store import FoundJob
from service.periodic import RedisMonitor
from service.problems import UNAVAILABLE_RETRY_SECONDS

OVERDUE_PER_STEP: Final = 500
COUNTED_SECONDS: Final = 1.0
"""So long a queue that is not half full counts as not full. A job is never queued beyond the limit:
the transaction counts again."""
LEAST_ROOM: Final = 100
"""A queue with less room is counted for each request."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class JobQueue:
    """Adds jobs to the queue and takes them out of it."""

    def __init__(
        self,
        queue: Queue,
        redis: "aioredis.Redis",
        transitions: Transitions,
        estimates: Estimates,
        *,
        server: RedisMonitor,
        max_jobs: int,
    ) -> None:
        self._queue = queue
        self._redis = redis
        self._transitions = transitions
        self._estimates = estimates
        self._server = server
        self._max_jobs = max_jobs
        self._ahead_seconds = 0.0
        """Of Redis' clock, less this process's."""
        self._roomy_until = 0.0
        """Until then the queue is not counted again."""

    def now(self) -> float:
        """Redis' time (epoch), by which deadlines and expiry go; `check_capacity` has read it."""
        return time.monotonic() + self._ahead_seconds

    async def check_capacity(self) -> None:
        """Refuse early, before a body is read that could not be used.

        Raises `QueueFull`, and `DependencyUnavailable` for a Redis that takes no new job.
        """
        await self._server.check_room()
        if time.monotonic() < self._roomy_until:
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.llen(self._queue.key)
            pipeline.time()
            answers = readable(await pipeline.execute(raise_on_error=False))
        waiting, (seconds, microseconds) = answers[0] or 0, answers[1]
        self._ahead_seconds = seconds + microseconds / 1e6 - time.monotonic()
        if waiting < self._max_jobs // 2 and waiting < self._max_jobs - LEAST_ROOM:
            self._roomy_until = time.monotonic() + COUNTED_SECONDS
        if waiting >= self._max_jobs:
            raise await self._full()

    async def add(
        self, job: Job, *, also: Callable[[Any], None], undo: AsyncExitStack
    ) -> FoundJob | None:
        """Write a job's record and queue it, in one transaction with what `also` adds.

        Returns the job as it was queued; `None` where that is to be read first.
        Raises `QueueFull`, or `DependencyUnavailable` where the job may exist nevertheless; then
        `undo` is emptied, so that no job loses its uploads. The sweep deletes leftovers.
        """
        write = partial(
            enqueue, self._queue, self._transitions, job, most=self._max_jobs, also=also
        )
        try:
            waiting = await to_thread.run_sync(write)
        except RedisError:
            # The response may have been lost after the transaction: then the job is kept.
            kept = undo.pop_all()
            try:
                queued = bool(await self._redis.exists(redis_keys.job(job.id)))
            except RedisError:
                raise DependencyUnavailable(
                    "Redis does not respond; the job may be queued nevertheless. Repeat the "
                    "request with the same Idempotency-Key, or add one, so that no further "
                    "repetition creates another job",
                    retry_after_seconds=UNAVAILABLE_RETRY_SECONDS,
                ) from None
            if not queued:
                await kept.aclose()
                raise
            return None
        if not waiting:  # other jobs came after the first check
            raise await self._full()
        return FoundJob(job, waiting - 1)

    async def cancel(self, job_id: str) -> None:
        """End a job as canceled unless it is final, and take it out of the queue."""
        await to_thread.run_sync(self._transitions.cancel, job_id)
        await self.forget(job_id)

    async def expire_overdue(self) -> None:
        """Expire jobs that no worker has started in time, whether or not there is a worker.

        Any number of processes may call it: a job expires once. Raises `redis.RedisError`.
        """
        await to_thread.run_sync(self._expire_overdue)

    def _expire_overdue(self) -> None:
        for job_id in self._transitions.overdue(OVERDUE_PER_STEP):
            try:
                is_over = self._transitions.expire(job_id)
            except ResponseError as error:
                if is_full(error) or is_read_only(error):
                    raise
                log.warning("a job cannot be expired", job_id=job_id, cause=explain(error))
                continue
            if is_over:
                forget(self._queue, job_id)
                log.info("job expired in the queue", job_id=job_id)

    async def forget(self, job_id: str) -> None:
        """Take a job whose record is final out of the queue."""
        await to_thread.run_sync(forget, self._queue, job_id)

    async def _full(self) -> QueueFull:
        seconds = await self._estimates.seconds_until_capacity()
        return QueueFull(jobs=self._max_jobs, retry_after_seconds=seconds)
