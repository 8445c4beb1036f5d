"""Follows the event stream of a job in Redis without polling: XREAD blocks until there is news.

Serves both server-sent events and requests that wait. It knows the stream, not what HTTP makes
of it. Its connections are its own and bounded, so that followers never starve the pollers.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.core import redis_keys
from service.core.job import EventName

BLOCK_SECONDS: Final = 2.0
FIRST: Final = "0-0"
"""Id before the first event of every stream."""
_EVENTS_AT_ONCE: Final = 100

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job; `data` is JSON."""

    id: str
    name: str
    data: str


class Follower:
    """A bounded number of followers of jobs."""

    def __init__(self, redis_url: str, *, at_once: int, stopping: asyncio.Event) -> None:
        self._redis = aioredis.Redis.from_pool(
            aioredis.BlockingConnectionPool.from_url(
                redis_url,
                decode_responses=True,
                max_connections=at_once,
                timeout=2 * BLOCK_SECONDS,
                socket_connect_timeout=2,
                socket_timeout=2 * BLOCK_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        )
        self._free = at_once
        self._stopping = stopping

    @property
    def stopping(self) -> bool:
        """Whether the process is about to end."""
        return self._stopping.is_set()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @contextmanager
    def seat(self) -> Iterator[bool]:
        """Take one of the places; `False` where all are taken."""
        if self._free <= 0:
            yield False
            return
        self._free -= 1
        try:
            yield True
        finally:
            self._free += 1

    @property
    def has_room(self) -> bool:
        """Whether one more may follow."""
        return self._free > 0

    async def has_news(self, job_id: str, after: str) -> bool:
        """Whether an event stands after the one with id `after`. Raises `redis.RedisError`."""
        return bool(await self._redis.xread({redis_keys.events(job_id): after}, count=1))

    async def events(self, job_id: str, after: str = FIRST) -> AsyncIterator[Event | None]:
        """Every event after the one with id `after`, up to `done`; `None` as a sign of life.

        Ends early only when the process is about to end. Outlasts an absence of Redis.
        """
        key, last = redis_keys.events(job_id), after
        while not self.stopping:
            try:
                answer = await self._redis.xread(
                    {key: last}, count=_EVENTS_AT_ONCE, block=int(BLOCK_SECONDS * 1000)
                )
            except RedisError as error:
                log.warning("an event stream lost Redis", cause=type(error).__name__)
                yield None
                await asyncio.sleep(1)
                continue
            if not answer:
                yield None
            for event_id, fields in _entries(answer):
                last = event_id
                yield Event(event_id, fields["event"], fields["data"])
                if fields["event"] == EventName.DONE:
                    return

    async def wait(self, job_id: str, seconds: float) -> bool:
        """Wait at most `seconds` until the job has ended; whether it has."""
        with self.seat() as seated:
            if not seated:
                return False
            try:
                async with asyncio.timeout(seconds):
                    async for event in self.events(job_id):
                        if event is not None and event.name == EventName.DONE:
                            return True
            except TimeoutError:
                return False
        return False


def _entries(answer: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries of the one stream in an answer to XREAD."""
    return [entry for _, entries in answer for entry in entries]
