"""How long jobs will take, from the queue as it stands and the pace that is seen.

One snapshot of the queue serves all requests of a short while, so that polling does not read the
queue again and again. How the future is reckoned stands in `service/jobs/forecast.py`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio as aioredis

from service.core import redis_keys
from service.core.catalog import Catalog
from service.core.job import Job, JobMetrics, Status
from service.core.params import GenerateRequest
from service.core.queue import list_key
from service.core.worker_registry import WorkerInfo, read
from service.jobs.forecast import Pace, Work, seconds_to_end

SNAPSHOT_SECONDS: Final = 0.5
STEPS_SEEN: Final = 3
"""Over so many steps of a job the pace is taken; over fewer it would be noise."""
UNKNOWN_SECONDS: Final = 30.0
"""What is said to who has to wait for room, as long as nothing is known."""
_COSTS_KEPT: Final = 20_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The queue at one moment."""

    at: float
    seconds_to_end: dict[str, float] = field(default_factory=dict)
    """Of each job that waits or runs, counted from `at`; empty while no pace is known."""
    workers_ready: int = 0
    waiting: int = 0
    running: int = 0
    oldest_created_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Mark:
    """How far a running job was when its pace was last taken."""

    at: float
    step: int
    rows: float
    """Of all jobs that ran then."""


class Estimates:
    """Answers how long things take. Methods raise `redis.RedisError` where Redis is away."""

    def __init__(
        self,
        redis: "aioredis.Redis",
        queue: str,
        catalog: Catalog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._list = list_key(queue)
        self._taken = f"{self._list}:intermediate"
        self._leased = f"rq:wip:{queue}"
        self._catalog = catalog
        self._clock = clock
        self._pace = Pace()
        self._works: OrderedDict[str, Work] = OrderedDict()
        self._marks: dict[str, _Mark] = {}
        self._told: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """When each job was first seen, and how many seconds it was then thought to take."""
        self._snapshot = Snapshot(at=0.0)
        self._taking = asyncio.Lock()

    async def eta_seconds(self, job: Job) -> float | None:
        """Seconds until the job ends; `None` once it has, or while no pace is known."""
        if job.status.is_terminal:
            return None
        snapshot = await self.snapshot()
        if job.id not in snapshot.seconds_to_end:
            snapshot = await self.snapshot(after=job.created_at)
        seconds = snapshot.seconds_to_end.get(job.id)
        if seconds is None:
            return None
        return round(self._left(snapshot, seconds), 1)

    def _left(self, snapshot: Snapshot, seconds: float) -> float:
        """Seconds from now, of what was reckoned when the snapshot was taken."""
        return max(0.1, seconds * self._pace.correction - (self._clock() - snapshot.at))

    async def room_seconds(self) -> float:
        """Seconds until a full queue has room again: until the first of all jobs ends."""
        ends = (await self.snapshot()).seconds_to_end
        return max(1.0, min(ends.values())) if ends else UNKNOWN_SECONDS

    async def own_room_seconds(self, owner: str) -> float:
        """Seconds until an owner has fewer jobs than now: until the first of its own ends."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(redis_keys.active_jobs(owner), 0, -1)
            pipeline.zrange(redis_keys.owner_jobs(owner), -1, -1, withscores=True)
            active, newest = await pipeline.execute()
        snapshot = await self.snapshot(after=newest[0][1] if newest else 0.0)
        ends = snapshot.seconds_to_end
        own = [ends[job_id] for job_id in active if job_id in ends]
        return self._left(snapshot, min(own)) if own else UNKNOWN_SECONDS

    async def snapshot(self, *, after: float = 0.0) -> Snapshot:
        """The queue as it was at most half a second ago, and not before `after` (epoch)."""
        if self._is_old(after):
            async with self._taking:
                if self._is_old(after):  # nobody took it while this one waited
                    self._snapshot = await self._take(self._clock())
        return self._snapshot

    def _is_old(self, after: float) -> bool:
        taken_at = self._snapshot.at
        return taken_at < after or self._clock() - taken_at > SNAPSHOT_SECONDS

    async def presences(self) -> list[WorkerInfo]:
        """The workers that have lately given a sign of life."""
        names: Any = await self._redis.zrange(redis_keys.WORKERS, 0, -1)
        if not names:
            return []
        return read(await self._redis.mget([redis_keys.worker(name) for name in names]))

    async def _take(self, now: float) -> Snapshot:
        ready = [presence for presence in await self.presences() if presence.ready]
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self._list, 0, -1)
            pipeline.lrange(self._taken, 0, -1)
            pipeline.zrange(self._leased, 0, -1)
            waiting, taken, leased = await pipeline.execute()
        held = list(dict.fromkeys([*(name.partition(":")[0] for name in leased), *taken]))
        waiting = [job_id for job_id in waiting if job_id not in set(held)]
        await self._learn_works([*held, *waiting])
        steps = await self._steps(held)
        await self._learn_pace(now, steps, sum(presence.row_steps_per_second for presence in ready))
        ends: dict[str, float] = {}
        if ready and self._pace.is_known:
            left = {name: self._works[name].steps - step for name, step in steps.items()}
            ends = seconds_to_end(
                [Work(name, self._works[name].rows, max(0, left[name])) for name in held],
                [self._works[name] for name in waiting],
                slots=sum(presence.slots for presence in ready),
                step_seconds=self._pace.step_seconds,
                overhead_seconds=self._pace.overhead_seconds,
            )
            for name, seconds in ends.items():
                self._told.setdefault(name, (now, seconds))
            while len(self._told) > _COSTS_KEPT:
                self._told.popitem(last=False)
        oldest = (
            await self._redis.hget(redis_keys.job(waiting[0]), "created_at") if waiting else None
        )
        return Snapshot(
            at=now,
            seconds_to_end=ends,
            workers_ready=len(ready),
            waiting=len(waiting),
            running=len(held),
            oldest_created_at=float(oldest) if oldest else None,
        )

    async def _learn_works(self, job_ids: Sequence[str]) -> None:
        """What each job asks for never changes, so it is read once and remembered."""
        unknown = [job_id for job_id in job_ids if job_id not in self._works]
        if unknown:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in unknown:
                    pipeline.hget(redis_keys.job(job_id), "request")
                for job_id, text in zip(unknown, await pipeline.execute(), strict=True):
                    self._works[job_id] = self._work(job_id, text)
        for job_id in job_ids:
            self._works.move_to_end(job_id)
        while len(self._works) > max(_COSTS_KEPT, len(job_ids)):
            self._works.popitem(last=False)

    def _work(self, job_id: str, text: str | None) -> Work:
        if text is None:
            return Work(job_id, 0.0, 0)
        request = GenerateRequest.model_validate_json(text)
        entry = self._catalog.models.get(request.model)
        native = entry.defaults.width * entry.defaults.height if entry else 0
        area = request.width * request.height / native if native else 1.0
        return Work(job_id, area * request.row_steps / request.steps, request.steps)

    async def _steps(self, job_ids: list[str]) -> dict[str, int]:
        """Steps that each held job has done."""
        if not job_ids:
            return {}
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(redis_keys.job(job_id), "step")
            answers = await pipeline.execute()
        return {job_id: int(step or 0) for job_id, step in zip(job_ids, answers, strict=True)}

    async def _learn_pace(self, now: float, steps: dict[str, int], warm_rate: float) -> None:
        self._pace.trust(warm_rate)
        rows = sum(self._works[name].rows for name, step in steps.items() if step)
        ended = [name for name in self._marks if name not in steps]
        for name, step in steps.items():
            mark = self._marks.get(name)
            if mark is None or step < mark.step:
                self._marks[name] = _Mark(now, step, rows)
            elif mark.step and step - mark.step >= STEPS_SEEN:
                seconds = (now - mark.at) / (step - mark.step)
                self._pace.see_step((rows + mark.rows) / 2, seconds)
                self._marks[name] = _Mark(now, step, rows)
            elif not mark.step and step:
                self._marks[name] = _Mark(now, step, rows)  # before, it may not have begun
        for name in ended:
            del self._marks[name]
            await self._learn_end(name)

    async def _learn_end(self, name: str) -> None:
        """Compare what was told of a job with what became of it."""
        answer: Any = await self._redis.hmget(
            redis_keys.job(name), "status", "metrics", "completed_at"
        )
        told = self._told.pop(name, None)
        status, metrics, completed_at = answer
        if status != Status.SUCCEEDED:
            return
        spent = JobMetrics.model_validate_json(metrics)
        beside = spent.total_seconds - spent.queue_seconds - spent.denoise_seconds
        self._pace.see_overhead(max(0.0, beside))
        if told is not None:
            first_at, seconds = told
            self._pace.see_end(seconds, float(completed_at) - first_at)
