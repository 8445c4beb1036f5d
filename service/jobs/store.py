"""Reads job records for the API. Each answer costs one round trip to Redis.

It changes nothing; that is the work of `service/core/transitions.py`.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis

from service.core import redis_keys
from service.core.errors import Gone, NotFound
from service.core.job import Job, Status
from service.core.queue import list_key

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Found:
    """A job and how many stand before it in the queue (`None` once it runs or has ended)."""

    job: Job
    ahead: int | None


class Records:
    """Looks jobs up for their owner. Methods raise `redis.RedisError` where Redis is away."""

    def __init__(
        self, redis: "aioredis.Redis", queue: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._list = list_key(queue)
        self._clock = clock

    async def get(self, job_id: str, owner: str) -> Found:
        """One job.

        Raises `NotFound` for an unknown job or one of another owner, and `Gone` for an expired
        one.
        """
        if _ID.fullmatch(job_id):
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hgetall(redis_keys.job(job_id))
                pipeline.lpos(self._list, job_id)
                fields, position = await pipeline.execute()
            if fields and fields.get("owner") == owner:
                return self._found(Job.from_hash(fields), position)
        raise NotFound("There is no such job")

    def _found(self, job: Job, position: int | None) -> Found:
        if job.expires_at is not None and job.expires_at <= self._clock():
            raise Gone("The job's record and pictures have expired")
        return Found(job, (position or 0) if job.status is Status.QUEUED else None)

    async def page(
        self, owner: str, *, before: tuple[float, str] | None, limit: int
    ) -> tuple[Sequence[Found], tuple[float, str] | None]:
        """An owner's jobs, newest first, from the one after `before`; and where to go on.

        `before` is (creation time, id) of the last job of the page before.
        """
        highest: float | str = "+inf" if before is None else before[0]
        index = redis_keys.owner_jobs(owner)
        # Jobs of one instant share a score, so some may stand in both pages' ranges.
        ranked: Any = await self._redis.zrevrangebyscore(
            index, highest, "-inf", start=0, num=limit + 64, withscores=True
        )
        ids = [
            (score, job_id)
            for job_id, score in ranked
            if before is None or (score, job_id) < before
        ]
        chosen = ids[:limit]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for _, job_id in chosen:
                pipeline.hgetall(redis_keys.job(job_id))
                pipeline.lpos(self._list, job_id)
            answers = await pipeline.execute()
        found = []
        for fields, position in zip(answers[::2], answers[1::2], strict=True):
            if not fields:
                continue
            try:
                found.append(self._found(Job.from_hash(fields), position))
            except Gone:
                continue
        return found, chosen[-1] if len(ids) > limit else None
