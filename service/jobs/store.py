"""Reads job records for the API, each with one round trip to Redis; pages have cursors.

Records are changed by `service/core/transitions.py` alone.
"""

import base64
import binascii
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis

from service.core import redis_keys
from service.core.errors import FieldError, Gone, InvalidField, NotFound
from service.core.job import Job, Status
from service.core.queue import list_key

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job and how many are ahead of it in the queue (`None` once it runs or has ended)."""

    job: Job
    ahead: int | None


class JobStore:
    """Finds the jobs of an owner. Methods raise `redis.RedisError`."""

    def __init__(
        self, redis: "aioredis.Redis", queue: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._list = list_key(queue)
        self._clock = clock

    async def get(self, job_id: str, owner: str) -> FoundJob:
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
        raise NotFound

    def _found(self, job: Job, position: int | None) -> FoundJob:
        if job.expires_at is not None and job.expires_at <= self._clock():
            raise Gone
        return FoundJob(job, (position or 0) if job.status is Status.QUEUED else None)

    async def page(
        self, owner: str, *, before: tuple[float, str] | None, limit: int
    ) -> tuple[Sequence[FoundJob], tuple[float, str] | None]:
        """A page of an owner's jobs, newest first, and the place where the next page starts.

        `before` is that place of the previous page: (creation time, id) of its last job.
        """
        highest: float | str = "+inf" if before is None else before[0]
        index = redis_keys.owner_jobs(owner)
        # Jobs created at the same instant share a score, so some may be in the ranges of two pages.
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


def write_cursor(last: tuple[float, str]) -> str:
    """An opaque cursor for (creation time, id) of the last job of a page."""
    return base64.urlsafe_b64encode(json.dumps(last).encode()).decode().rstrip("=")


def read_cursor(text: str) -> tuple[float, str]:
    """(creation time, id) again. Raises `InvalidField` where it is not a valid cursor."""
    try:
        moment, job_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise _not_a_cursor() from None
    if not isinstance(moment, float) or not math.isfinite(moment) or not isinstance(job_id, str):
        raise _not_a_cursor()
    return moment, job_id


def _not_a_cursor() -> InvalidField:
    return InvalidField.of(FieldError("cursor", "is not a valid cursor"))
