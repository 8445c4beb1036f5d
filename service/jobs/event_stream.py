"""Subscribes to the event stream of a job in Redis: XREAD blocks until there is a new event.

Used by server-sent events and by requests that wait for a job. Subscribers have connections of
their own, bounded in number, so that they never block requests that poll.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.core import redis_keys
from service.core.job import EventName, Status
from service.limits import FairShare

BLOCK_SECONDS: Final = 2.0
HEARTBEAT_SECONDS: Final = 1.5
"""With `service.api_keys.RECHECK_SECONDS`, a revoked key's waits end in less than two seconds."""
LONGEST_PAUSE_SECONDS: Final = 0.2
"""Between two reads for a request that waits for the end of a job (`WaitPace`)."""
LEAST_SLOTS: Final = 2
"""Of one owner and of one job, as long as any are free."""
FIRST: Final = "0-0"
"""Id before the first event of every stream."""
_EVENTS_AT_ONCE: Final = 100
_TERMINAL: Final = frozenset(status for status in Status if status.is_terminal)

Check = Callable[[], Awaitable[None]]
"""Raises `Unauthorized` once the client may not wait any longer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job; `data` is JSON."""

    id: str
    name: str
    data: str


class WaitPace:
    """How long a request that waits for the end of a job can leave its steps unread.

    That is half the time that the steps left will take, going by those done: few reads, and none
    of them late.
    """

    def __init__(self) -> None:
        self.pause_seconds = 0.0
        self._first = 0.0, 0

    def observe(self, event: Event) -> None:
        """Take in an event; only progress tells anything. A damaged one tells nothing."""
        if event.name != EventName.PROGRESS:
            return
        try:
            progress = json.loads(event.data)
            at, step = int(event.id.partition("-")[0]) / 1000, int(progress["step"])
            began, first = self._first
            if not first or step <= first:  # the first one, or another attempt's
                self._first = began, first = at, step
            done, left = step - first, int(progress["total"]) - step
            half = (at - began) / done * left / 2 if done else 0.0
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return
        self.pause_seconds = min(max(half, 0.0), LONGEST_PAUSE_SECONDS)


class EventStreams:
    """The event streams of jobs, for a bounded number of subscribers."""

    def __init__(self, redis_url: str, *, limit: int, stopping: asyncio.Event) -> None:
        self._redis = aioredis.Redis.from_pool(
            aioredis.BlockingConnectionPool.from_url(
                redis_url,
                decode_responses=True,
                encoding_errors="replace",  # a damaged event must not break its connection
                max_connections=limit,
                timeout=2 * BLOCK_SECONDS,
                socket_connect_timeout=2,
                socket_timeout=2 * BLOCK_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        )
        self._shares = FairShare(limit, at_least=LEAST_SLOTS)
        self._per_job: Counter[str] = Counter()
        self._limit_per_job = max(LEAST_SLOTS, limit // 8)
        self._stopping = stopping

    @property
    def stopping(self) -> bool:
        """Whether the process is shutting down."""
        return self._stopping.is_set()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @contextmanager
    def subscriber_slot(self, owner: str, job_id: str) -> Iterator[bool]:
        """Take a subscriber slot for the length of the context; `False` where none is free.

        Slots are shared between owners, and one job has a part of them only.
        """
        if self._per_job[job_id] >= self._limit_per_job or not self._shares.take(owner):
            yield False
            return
        self._per_job[job_id] += 1
        try:
            yield True
        finally:
            self._shares.release(owner)
            self._per_job[job_id] -= 1
            self._per_job += Counter()  # drops the zeros

    def has_free_slot(self, owner: str) -> bool:
        """Whether one more subscriber of this owner is allowed."""
        return self._shares.may_take(owner)

    async def is_over(self, job_id: str, after: str) -> bool:
        """Whether no event will come after the one with id `after`; `False` without Redis.

        The client has seen the last event or invented the id, the stream has expired, or the job
        was deleted and its last event came and went between two reads.
        """
        try:
            status: Any = await self._redis.hget(redis_keys.job(job_id), "status")
            if status is not None and status not in _TERMINAL:
                return False
            return not await self._redis.xread({redis_keys.events(job_id): after}, count=1)
        except RedisError:
            return False

    async def events(
        self, job_id: str, after: str = FIRST, *, pace: WaitPace | None = None
    ) -> AsyncIterator[Event | None]:
        """Every event after the one with id `after`, up to `done`; `None` as a heartbeat.

        With a `pace` those of several steps are read together.
        Ends without `done` where that is not to come (`is_over`), and when the process shuts down;
        reconnects while Redis is unavailable.
        """
        key, last = redis_keys.events(job_id), after
        while not self.stopping:
            try:
                answer = await self._redis.xread(
                    {key: last}, count=_EVENTS_AT_ONCE, block=int(HEARTBEAT_SECONDS * 1000)
                )
            except RedisError as error:
                log.warning("event stream lost its Redis connection", cause=type(error).__name__)
                yield None
                await asyncio.sleep(1)
                continue
            if not answer:
                if await self.is_over(job_id, last):
                    return
                yield None
            for event_id, fields in _entries(answer):
                last = event_id
                event = Event(event_id, fields["event"], fields["data"])
                if pace is not None:
                    pace.observe(event)
                yield event
                if event.name == EventName.DONE:
                    return
            await asyncio.sleep(0 if pace is None else pace.pause_seconds)

    async def wait(self, job_id: str, seconds: float, *, owner: str, check: Check) -> bool | None:
        """Wait at most `seconds` for the end of the job; whether it came.

        `None` where no subscriber slot is free, so that there was no wait. Raises what `check`
        does, which is asked at each event and heartbeat, and before the wait ends.
        """

        async def is_done(event: Event | None) -> bool:
            return event is not None and event.name == EventName.DONE

        return await self.wait_until(is_done, job_id, seconds, owner=owner, check=check)

    async def wait_until(
        self,
        is_over: Callable[[Event | None], Awaitable[bool]],
        job_id: str,
        seconds: float,
        *,
        owner: str,
        check: Check,
        after: str = FIRST,
    ) -> bool | None:
        """As `wait`, until `is_over` says so: at once, of an event after `after`, a heartbeat."""
        with self.subscriber_slot(owner, job_id) as has_slot:
            if not has_slot:
                return None
            try:
                async with asyncio.timeout(seconds):
                    if await is_over(None):
                        return True
                    async for event in self.events(job_id, after, pace=WaitPace()):
                        await check()
                        if await is_over(event):
                            return True
            except TimeoutError:
                await check()
                return False
        await check()
        if self.stopping:
            return False
        await is_over(None)  # there are no more events: the caller looks a last time
        return True

    async def last_id(self, job_id: str) -> str:
        """The id of the newest event. Raises `redis.RedisError`."""
        newest: Any = await self._redis.xrevrange(redis_keys.events(job_id), count=1)
        return newest[0][0] if newest else FIRST


def _entries(answer: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries of the one stream in an answer to XREAD."""
    return [entry for _, entries in answer for entry in entries]
