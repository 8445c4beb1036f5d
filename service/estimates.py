"""How long a job will take: the work ahead of it over the measured rate of the warm workers.

Work is counted in row steps (`GenerateRequest.row_steps`). One snapshot of the queue serves all
requests of a short while, so that polling does not read the queue again and again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio as aioredis

from service.core import keys
from service.core.job import Job, Status
from service.core.presence import PRESENCE_SECONDS, Presence
from service.core.queue import list_key
from service.core.request import GenerateRequest

SNAPSHOT_SECONDS: Final = 0.5
_COSTS_KEPT: Final = 20_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The queue at one moment. Work in row steps, rate in row steps a second."""

    at: float
    work_before: dict[str, int] = field(default_factory=dict)
    """For each waiting job: the work of the jobs that run and of those before it."""
    waiting_work: int = 0
    rate: float = 0.0
    workers_ready: int = 0
    running: int = 0
    oldest_created_at: float | None = None

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self.work_before)


class Estimates:
    """Answers how long things take. Methods raise `redis.RedisError` where Redis is away."""

    def __init__(
        self, redis: "aioredis.Redis", queue: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._list = list_key(queue)
        self._running_key = f"rq:wip:{queue}"
        self._clock = clock
        self._costs: OrderedDict[str, int] = OrderedDict()
        self._snapshot = Snapshot(at=0.0)
        self._taking = asyncio.Lock()

    async def eta_seconds(self, job: Job) -> float | None:
        """Seconds until the job ends; `None` once it has, or while no rate is known."""
        if job.status.is_terminal:
            return None
        snapshot = await self.snapshot()
        if snapshot.rate <= 0:
            return None
        own = job.request.row_steps
        if job.status is Status.PROCESSING:
            left = own * (1 - min(1.0, job.step / job.request.steps))
        else:
            left = snapshot.work_before.get(job.id, 0) + own
        return round(left / snapshot.rate, 1)

    async def room_seconds(self) -> float:
        """Seconds until a full queue has room again: one mean job at the measured rate."""
        snapshot = await self.snapshot()
        if snapshot.rate <= 0 or not snapshot.waiting:
            return 30.0
        return max(1.0, snapshot.waiting_work / snapshot.waiting / snapshot.rate)

    async def snapshot(self) -> Snapshot:
        """The queue as it was at most half a second ago."""
        if self._is_old():
            async with self._taking:
                if self._is_old():  # nobody took it while this one waited
                    self._snapshot = await self._take(self._clock())
        return self._snapshot

    def _is_old(self) -> bool:
        return self._clock() - self._snapshot.at > SNAPSHOT_SECONDS

    async def presences(self) -> list[Presence]:
        """The workers that have lately given a sign of life."""
        names: Any = await self._redis.zrangebyscore(
            keys.WORKERS, self._clock() - 2 * PRESENCE_SECONDS, "+inf"
        )
        if not names:
            return []
        texts = await self._redis.mget([keys.worker(name) for name in names])
        return [Presence.model_validate_json(text) for text in texts if text is not None]

    async def _take(self, now: float) -> Snapshot:
        ready = [presence for presence in await self.presences() if presence.ready]
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self._list, 0, -1)
            pipeline.zrange(self._running_key, 0, -1)
            waiting, executions = await pipeline.execute()
        running = list(dict.fromkeys(member.split(":", 1)[0] for member in executions))
        costs = await self._costs_of([*waiting, *running])
        steps = await self._steps_of(running)
        work = sum(
            int(costs[job_id] * (1 - share)) for job_id, share in zip(running, steps, strict=True)
        )
        before = {}
        for job_id in waiting:
            before[job_id] = work
            work += costs[job_id]
        oldest = await self._redis.hget(keys.job(waiting[0]), "created_at") if waiting else None
        return Snapshot(
            at=now,
            work_before=before,
            waiting_work=sum(costs[job_id] for job_id in waiting),
            rate=sum(presence.row_steps_per_second for presence in ready),
            workers_ready=len(ready),
            running=len(running),
            oldest_created_at=float(oldest) if oldest else None,
        )

    async def _costs_of(self, job_ids: list[str]) -> dict[str, int]:
        """Work of each job; it never changes, so it is read once and remembered."""
        unknown = [job_id for job_id in job_ids if job_id not in self._costs]
        if unknown:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in unknown:
                    pipeline.hget(keys.job(job_id), "request")
                for job_id, text in zip(unknown, await pipeline.execute(), strict=True):
                    request = GenerateRequest.model_validate_json(text) if text else None
                    self._costs[job_id] = request.row_steps if request else 0
        costs = {job_id: self._costs[job_id] for job_id in job_ids}
        while len(self._costs) > _COSTS_KEPT:
            self._costs.popitem(last=False)
        return costs

    async def _steps_of(self, job_ids: list[str]) -> list[float]:
        """Part of each running job that is done, 0..1."""
        if not job_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(keys.job(job_id), "step", "request")
            answers = await pipeline.execute()
        return [
            min(1.0, int(step or 0) / GenerateRequest.model_validate_json(request).steps)
            if request
            else 1.0
            for step, request in answers
        ]
