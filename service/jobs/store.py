"""Reads job records for the API; pages of them have cursors.

Requests that come at the same time read their records with one call to Redis: most requests are
polls, and most of the cost of one was the call.

Records are changed by `service/core/transitions.py` alone.
"""

import asyncio
import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from redis.exceptions import ResponseError

from service.core import redis_keys
from service.core.errors import FieldError, Gone, InvalidField, NotFound
from service.core.job import Job, Status, UnreadableRecord, read_number
from service.core.queue import list_key
from service.core.redis_server import is_wrong_type, wrong_type_is_absent

POSITIONS_SEARCHED: Final = 5000
"""From each end of the queue; a search of so many takes Redis some 50 microseconds."""
_READ_AT_ONCE: Final = 32
"""Jobs of one call, which Redis is not to be held up by."""
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job and how many are ahead of it in the queue (`None` once it runs or has ended)."""

    job: Job
    ahead: int | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job's record as Redis holds it, and how many are ahead of it in the queue."""

    fields: dict[str, str]
    ahead: int | None
    now: float
    """Redis' time (epoch) at which it was read."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.fields.get("id", "")

    @property
    def created_at(self) -> float:
        """When the job was created (epoch); 0 in a damaged record."""
        return read_number(self.fields.get("created_at"), most=self.now) or 0.0

    @property
    def status(self) -> Status:
        """Its state, whatever its request is; one that this release does not know is no end."""
        status = self.fields.get("status")
        return Status(status) if status in set(Status) else Status.PROCESSING

    @property
    def is_terminal(self) -> bool:
        """Whether the job has come to its end."""
        return self.status.is_terminal

    @property
    def is_ownerless(self) -> bool:
        """Whether it is damaged so that it does not say whose it is."""
        owner = self.fields.get("owner", "")
        return not owner or "\ufffd" in owner

    @property
    def is_expired(self) -> bool:
        """Whether its time is over: release 0.1.0 kept the records of expired jobs."""
        try:
            return float(self.fields.get("expires_at", "inf")) <= self.now
        except ValueError:
            return False

    def parse(self) -> FoundJob:
        """The job. Raises `UnreadableRecord` for a damaged one."""
        return FoundJob(Job.read(self.fields), self.ahead)


class JobStore:
    """Finds the jobs of an owner. Methods raise `redis.RedisError`."""

    def __init__(self, redis: "aioredis.Redis", queue: str) -> None:
        self._redis = redis
        self._list = list_key(queue)
        self._find = redis.register_script(redis_keys.load_script("job_find"))
        self._awaited: list[tuple[str, asyncio.Future[_Answer]]] = []
        """The jobs to be read by the next call, and who waits for each."""
        self._reader: asyncio.Task[None] | None = None

    async def get(self, job_id: str, owner: str) -> FoundJob:
        """One job. Raises as `record` and `JobRecord.parse`."""
        return (await self.record(job_id, owner)).parse()

    async def record(self, job_id: str, owner: str) -> JobRecord:
        """The record of one job.

        Raises `NotFound` for an unknown job or one of another owner, and `Gone` for an expired
        one.
        """
        record = await self._owned(job_id, owner)
        if record.is_expired:
            raise Gone
        return record

    async def status(self, job_id: str, owner: str) -> Status:
        """The state of a job however damaged it is, so that its owner can always end it.

        Raises `NotFound` and `Gone` as `get`.
        """
        return (await self._owned(job_id, owner)).status

    async def _owned(self, job_id: str, owner: str) -> JobRecord:
        if _ID.fullmatch(job_id):
            record, tombstone = await self._read(job_id)
            if record is not None and record.is_ownerless:
                # Then the list of the owner's jobs says so.
                if await self._lists(owner, job_id):
                    return replace(record, fields=record.fields | {"owner": owner})
            elif record is not None and record.fields["owner"] == owner:
                return record
            if tombstone == owner and record is None:
                raise Gone
        raise NotFound

    async def _lists(self, owner: str, job_id: str) -> bool:
        score: Any = None
        with wrong_type_is_absent():
            score = await self._redis.zscore(redis_keys.owner_jobs(owner), job_id)
        return score is not None

    async def _read(self, job_id: str) -> "_Answer":
        """What Redis holds of one job, read together with others that are asked for meanwhile."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._awaited.append((job_id, answer))
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_awaited())
        return await answer

    async def _read_awaited(self) -> None:
        while self._awaited:
            awaited = self._awaited[:_READ_AT_ONCE]
            del self._awaited[:_READ_AT_ONCE]
            try:
                found = await self._read_all([job_id for job_id, _ in awaited])
            except Exception as error:  # noqa: BLE001 - it is raised where the job was asked for
                for _, answer in awaited:
                    if not answer.done():  # who asked may be gone
                        answer.set_exception(error)
            else:
                for (_, answer), one in zip(awaited, found, strict=True):
                    if not answer.done():
                        answer.set_result(one)
        self._reader = None

    async def _read_all(self, job_ids: Sequence[str]) -> "list[_Answer]":
        keys = [key(one) for one in job_ids for key in (redis_keys.job, redis_keys.tombstone)]
        answer: Any = await self._find(
            keys=[self._list, *keys], args=[POSITIONS_SEARCHED, *job_ids]
        )
        now, *found = answer
        return [_read(job_id, one, float(now)) for job_id, one in zip(job_ids, found, strict=True)]

    async def page(
        self, owner: str, *, before: tuple[float, str] | None, limit: int
    ) -> tuple[Sequence[FoundJob], tuple[float, str] | None]:
        """A page of an owner's jobs, newest first, and the place where the next page starts.

        `before` is that place of the previous page: (creation time, id) of its last job.
        """
        highest: float | str = "(+inf" if before is None else before[0]
        index = redis_keys.owner_jobs(owner)
        # Jobs created at the same instant share a score, so some may be in the ranges of two pages.
        try:
            ranked: Any = await self._redis.zrevrangebyscore(
                index, highest, "(-inf", start=0, num=limit + 64, withscores=True
            )
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            log.warning("the list of an owner's jobs is damaged", owner=owner)
            ranked = []
        ids = [
            (score, job_id)
            for job_id, score in ranked
            if (before is None or (score, job_id) < before) and _ID.fullmatch(job_id)
        ]
        chosen = ids[:limit]
        found = []
        for record, _ in await self._read_all([job_id for _, job_id in chosen]):
            if record is None or record.is_expired:
                continue
            try:
                found.append(record.parse())
            except UnreadableRecord:
                log.warning("a damaged record is left out of a list", job_id=record.id)
        return found, chosen[-1] if len(ids) > limit else None


_Answer = tuple[JobRecord | None, str]
"""The record of a job, and the owner in its tombstone."""


def _read(job_id: str, answer: Any, now: float) -> _Answer:
    """A job in an answer of `job_find`. Its id is that of its key, whatever its record says."""
    found, tombstone, ahead, is_damaged = answer
    if not found and not is_damaged:
        return None, tombstone
    fields = dict(zip(found[::2], found[1::2], strict=True)) | {"id": job_id}
    return JobRecord(fields, None if ahead < 0 else ahead, now), tombstone


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
