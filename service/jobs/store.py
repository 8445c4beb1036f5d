"""Reads job records for the API, each with one round trip to Redis; pages have cursors.

Records are changed by `service/core/transitions.py` alone.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis
import structlog

from service.core import redis_keys
from service.core.errors import FieldError, Gone, InvalidField, NotFound
from service.core.job import Job, Status
from service.core.queue import list_key
from service.core.records import UnreadableRecord

POSITIONS_SEARCHED: Final = 5000
"""From each end of the queue; a search of so many takes Redis some 50 microseconds."""
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job and how many are ahead of it in the queue (`None` once it runs or has ended)."""

    job: Job
    ahead: int | None


class JobStore:
    """Finds the jobs of an owner. Methods raise `redis.RedisError`."""

    def __init__(self, redis: "aioredis.Redis", queue: str) -> None:
        self._redis = redis
        self._list = list_key(queue)

    async def get(self, job_id: str, owner: str) -> FoundJob:
        """One job.

        Raises `NotFound` for an unknown job or one of another owner, and `Gone` for an expired
        one.
        """
        if _ID.fullmatch(job_id):
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hgetall(redis_keys.job(job_id))
                pipeline.get(redis_keys.tombstone(job_id))
                self._look_up_position(pipeline, job_id)
                pipeline.llen(self._list)
                pipeline.time()
                fields, tombstone, *places, waiting, now = await pipeline.execute()
            if fields and fields.get("owner") == owner:
                return _found(Job.read(fields), _ahead(places, waiting), _seconds(now))
            if tombstone == owner and not fields:
                raise Gone
        raise NotFound

    async def status(self, job_id: str, owner: str) -> Status:
        """The state of a job whatever its request is, so that its owner can always end it.

        Raises `NotFound` and `Gone` as `get`.
        """
        if _ID.fullmatch(job_id):
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hmget(redis_keys.job(job_id), "owner", "status")
                pipeline.get(redis_keys.tombstone(job_id))
                (owned_by, status), tombstone = await pipeline.execute()
            if owned_by == owner:
                return Status(status) if status in set(Status) else Status.PROCESSING
            if tombstone == owner and owned_by is None:
                raise Gone
        raise NotFound

    def _look_up_position(self, pipeline: Any, job_id: str) -> None:
        """Look near both ends of the queue: a search of all of it would take as long as it is."""
        for rank in (1, -1):
            pipeline.lpos(self._list, job_id, rank=rank, maxlen=POSITIONS_SEARCHED)

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
                self._look_up_position(pipeline, job_id)
            pipeline.llen(self._list)
            pipeline.time()
            *answers, waiting, now = await pipeline.execute()
        found = []
        for fields, *places in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
            if not fields:
                continue
            try:
                found.append(_found(Job.read(fields), _ahead(places, waiting), _seconds(now)))
            except Gone:
                continue
            except UnreadableRecord:
                log.warning("a damaged record is left out of a list", job_id=fields.get("id"))
        return found, chosen[-1] if len(ids) > limit else None


def _found(job: Job, ahead: int, now: float) -> FoundJob:
    if job.expires_at is not None and job.expires_at <= now:
        raise Gone  # release 0.1.0 kept the records of expired jobs
    return FoundJob(job, ahead if job.status is Status.QUEUED else None)


def _ahead(places: Sequence[int | None], waiting: int) -> int:
    """Jobs ahead of one in the queue; the middle of the queue where it is far from both ends."""
    known = next((place for place in places if place is not None), None)
    if known is not None:
        return known
    return waiting // 2 if waiting > 2 * POSITIONS_SEARCHED else 0


def _seconds(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1e6


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
