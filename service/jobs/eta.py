"""Estimates when jobs will end, from the queue and the observed pace of the workers.

One snapshot of the queue serves all requests within half a second, so that polling does not read
the queue again and again.
"""

import asyncio
import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio as aioredis
from pydantic import ValidationError

from service.core import redis_keys
from service.core.catalog import Catalog
from service.core.job import Job, JobMetrics, Status, read_number
from service.core.params import GenerateRequest
from service.core.queue import list_key
from service.core.redis_server import readable
from service.core.worker_registry import WorkerInfo, read

SNAPSHOT_SECONDS: Final = 0.5
STEPS_PER_OBSERVATION: Final = 3
"""The pace is measured over this many steps of a job; over fewer it would be noise."""
UNKNOWN_SECONDS: Final = 30.0
"""`Retry-After` of a full queue while nothing is known."""
SHORT_QUEUE: Final = 32
"""So many waiting jobs are read and simulated anew for one that has come since."""
SIMULATED: Final = 2000
"""Waiting jobs whose ends are simulated one by one; those behind them are extrapolated."""
_JOBS_CACHED: Final = 20_000
_DECAY: Final = 0.9
"""Weight of all earlier observations at each new one."""
_WARM_ROWS: Final = 16.0
"""Workers measure their rate at about this batch size; small batches take longer per row."""
_WARM_OVERHEAD_SECONDS: Final = 0.3
_MAX_CORRECTION: Final = 3.0
_UNREADABLE_ROWS: Final = 2.0
_UNREADABLE_STEPS: Final = 30
_MOST_WORK: Final = 10_000
_MOST_OVERHEAD_SECONDS: Final = 600.0
"""What lies beyond these in a record is no measure of other jobs."""


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """One job: rows of its forwards (in rows of the model's native size), and steps left."""

    job_id: str
    rows: float
    steps: int


class Pace:
    """Seconds per step: a fixed part and a part per row, fitted to observations."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._overhead = _WARM_OVERHEAD_SECONDS
        self._known_rate = 0.0
        self._correction = 1.0

    def seed(self, rate: float) -> None:
        """Start from the rows per second that workers measured at warm-up."""
        if rate > 0 and rate != self._known_rate:
            self._known_rate = rate
            self._weight = self._x = self._y = self._xx = self._xy = 0.0
            self.observe_step(1.0, 2 / rate)
            self.observe_step(_WARM_ROWS, _WARM_ROWS / rate)

    def observe_step(self, rows: float, seconds: float) -> None:
        """Record a step over this many rows."""
        self._weight = self._weight * _DECAY + 1
        self._x = self._x * _DECAY + rows
        self._y = self._y * _DECAY + seconds
        self._xx = self._xx * _DECAY + rows * rows
        self._xy = self._xy * _DECAY + rows * seconds

    def observe_overhead(self, seconds: float) -> None:
        """Record the time of a job outside its steps: encoding, decoding, uploading."""
        self._overhead += (1 - _DECAY) * (seconds - self._overhead)

    def observe_end(self, predicted_seconds: float, seconds: float) -> None:
        """Record how long a job took, and the first prediction for it."""
        ratio = min(
            _MAX_CORRECTION, max(1 / _MAX_CORRECTION, seconds / max(predicted_seconds, 0.1))
        )
        self._correction += (1 - _DECAY) * (ratio - self._correction)

    @property
    def correction(self) -> float:
        """Typical ratio of actual to predicted time: jobs that arrive later share the steps."""
        return self._correction

    @property
    def is_known(self) -> bool:
        """Whether there has been any observation."""
        return self._weight > 0

    @property
    def overhead_seconds(self) -> float:
        """Time of a job outside its steps."""
        return self._overhead

    def step_seconds(self, rows: float) -> float:
        """Expected time of a step over this many rows (weighted least squares)."""
        spread = self._weight * self._xx - self._x * self._x
        slope = (
            (self._weight * self._xy - self._x * self._y) / spread
            if spread > 1e-9 * self._xx
            else self._y / self._x
        )
        fixed = (self._y - slope * self._x) / self._weight
        if slope < 0:
            slope, fixed = 0.0, self._y / self._weight
        elif fixed < 0:
            slope, fixed = self._xy / self._xx, 0.0
        return fixed + slope * rows


def seconds_to_end(
    held: Sequence[RemainingWork],
    waiting: Sequence[RemainingWork],
    *,
    slots: int,
    step_seconds: Callable[[float], float],
    overhead_seconds: float,
) -> dict[str, float]:
    """Seconds from now until each job ends.

    `held` are the jobs of workers, `waiting` the queue in order, `slots` how many jobs all
    workers hold at once. Each forward advances all held jobs by one step; the next waiting job
    starts as soon as one ends.
    """
    ends: dict[str, float] = {}
    queue = list(reversed([*held[slots:], *waiting]))
    active = [(float(work.steps), work.job_id, work.rows) for work in held[:slots]]
    heapq.heapify(active)
    rows = sum(entry[2] for entry in active)
    clock = done_steps = 0.0
    while active or queue:
        while queue and len(active) < max(1, slots):
            work = queue.pop()
            heapq.heappush(active, (done_steps + work.steps, work.job_id, work.rows))
            rows += work.rows
        at_step, job_id, job_rows = heapq.heappop(active)
        clock += (at_step - done_steps) * step_seconds(rows)
        done_steps = at_step
        rows -= job_rows
        ends[job_id] = clock + overhead_seconds
    return ends


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The queue at one moment."""

    at: float
    seconds_to_end: dict[str, float] = field(default_factory=dict)
    """Of each waiting or running job, counted from `at`; empty while no pace is known."""
    workers_ready: int = 0
    waiting: int = 0
    running: int = 0
    oldest_created_at: float | None = None
    horizon_seconds: float = 0.0
    """Until the last simulated job ends."""

    def extrapolated(self, ahead: int | None) -> float | None:
        """Seconds until a job ends that came since, or is behind the simulated ones.

        `None` while unknown.
        """
        simulated = min(self.waiting, SIMULATED)
        if ahead is None or not simulated or not self.seconds_to_end:
            return None
        return self.horizon_seconds * (ahead + 1) / simulated


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """How far a running job was when the pace was last measured."""

    at: float
    step: int
    rows: float
    """Of all jobs that were running."""


class Estimates:
    """Estimates waiting times. Methods raise `redis.RedisError`."""

    def __init__(
        self,
        redis: "aioredis.Redis",
        queue: str,
        catalog: Catalog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._list = list_key(queue)
        self._dequeued = f"{self._list}:intermediate"
        self._running = f"rq:wip:{queue}"
        self._catalog = catalog
        self._clock = clock
        self._pace = Pace()
        self._works: OrderedDict[str, RemainingWork] = OrderedDict()
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._predictions: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """When each job was first seen, and its predicted seconds at that time."""
        self._snapshot = Snapshot(at=0.0)
        self._lock = asyncio.Lock()

    async def eta_seconds(self, job: Job, ahead: int | None) -> float | None:
        """Seconds until the job ends; `None` once it has, or while no pace is known.

        `ahead` is the number of jobs before it in the queue.
        """
        if job.status.is_terminal:
            return None
        return await self.seconds_left(job.id, job.created_at, ahead)

    async def seconds_left(self, job_id: str, created_at: float, ahead: int | None) -> float | None:
        """As `eta_seconds`, of a job that has not ended."""
        snapshot = await self.snapshot()
        if job_id not in snapshot.seconds_to_end and snapshot.waiting <= SHORT_QUEUE:
            snapshot = await self.snapshot(after=created_at)
        seconds = snapshot.seconds_to_end.get(job_id)
        if seconds is None:
            seconds = snapshot.extrapolated(ahead)
        if seconds is None:
            return None
        return round(self._left(snapshot, seconds), 1)

    def _left(self, snapshot: Snapshot, seconds: float) -> float:
        """Seconds from now, given the seconds from the time of the snapshot."""
        return max(0.1, seconds * self._pace.correction - (self._clock() - snapshot.at))

    async def seconds_until_capacity(self) -> float:
        """Seconds until a full queue accepts a job again: until the first of all jobs ends."""
        ends = (await self.snapshot()).seconds_to_end
        return max(1.0, min(ends.values())) if ends else UNKNOWN_SECONDS

    async def seconds_until_owner_capacity(self, owner: str) -> float:
        """Seconds until the first of an owner's jobs ends."""
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
            async with self._lock:
                if self._is_old(after):  # no other request took it meanwhile
                    self._snapshot = await self._take(self._clock())
        return self._snapshot

    def _is_old(self, after: float) -> bool:
        taken_at = self._snapshot.at
        return taken_at < after or self._clock() - taken_at > SNAPSHOT_SECONDS

    async def presences(self) -> list[WorkerInfo]:
        """The workers with a recent heartbeat."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(redis_keys.WORKERS, 0, -1)
            [names] = readable(await pipeline.execute(raise_on_error=False))
        keys = [redis_keys.worker(name) for name in names or ()]
        return read(await self._redis.mget(keys)) if keys else []

    async def _take(self, now: float) -> Snapshot:
        ready = [presence for presence in await self.presences() if presence.ready]
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self._list, 0, SIMULATED - 1 if ready else 0)
            pipeline.llen(self._list)
            pipeline.lrange(self._dequeued, 0, -1)
            pipeline.zrange(self._running, 0, -1)
            found = readable(await pipeline.execute(raise_on_error=False))
        waiting, dequeued, running = (found[at] or [] for at in (0, 2, 3))
        listed, length = len(waiting), found[1] or 0
        held = list(dict.fromkeys([*(name.partition(":")[0] for name in running), *dequeued]))
        known = set(held)
        waiting = [job_id for job_id in waiting if job_id not in known]
        await self._learn_works([*held, *waiting])
        steps = await self._steps(held)
        await self._learn_pace(now, steps, sum(presence.row_steps_per_second for presence in ready))
        ends: dict[str, float] = {}
        if ready and self._pace.is_known:
            left = {name: self._works[name].steps - step for name, step in steps.items()}
            ends = seconds_to_end(
                [RemainingWork(name, self._works[name].rows, max(0, left[name])) for name in held],
                [self._works[name] for name in waiting],
                slots=sum(presence.slots for presence in ready),
                step_seconds=self._pace.step_seconds,
                overhead_seconds=self._pace.overhead_seconds,
            )
            for name, seconds in ends.items():
                self._predictions.setdefault(name, (now, seconds))
            while len(self._predictions) > _JOBS_CACHED:
                self._predictions.popitem(last=False)
        oldest = await self._read_fields(waiting[:1], "created_at")
        return Snapshot(
            at=now,
            seconds_to_end=ends,
            workers_ready=len(ready),
            waiting=length if length > listed else len(waiting),
            running=len(held),
            oldest_created_at=read_number(oldest[0]) if oldest else None,
            horizon_seconds=max(ends.values(), default=0.0),
        )

    async def _learn_works(self, job_ids: Sequence[str]) -> None:
        """The request of a job never changes, so it is read once and cached."""
        unknown = [job_id for job_id in job_ids if job_id not in self._works]
        texts = await self._read_fields(unknown, "request")
        for job_id, text in zip(unknown, texts, strict=True):
            self._works[job_id] = self._work(job_id, text)
        for job_id in job_ids:
            self._works.move_to_end(job_id)
        while len(self._works) > max(_JOBS_CACHED, len(job_ids)):
            self._works.popitem(last=False)

    async def _read_fields(self, job_ids: Sequence[str], name: str) -> list[Any]:
        """One field of each job's record; `None` for one that is no record."""
        if not job_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(redis_keys.job(job_id), name)
            return readable(await pipeline.execute(raise_on_error=False))

    def _work(self, job_id: str, text: str | None) -> RemainingWork:
        if text is None:
            return RemainingWork(job_id, 0.0, 0)
        # Of another release, or damaged: it counts as an ordinary job.
        ordinary = RemainingWork(job_id, _UNREADABLE_ROWS, _UNREADABLE_STEPS)
        try:
            request = GenerateRequest.model_validate_json(text)
            if min(request.steps, request.num_images) < 1 or request.steps > _MOST_WORK:
                return ordinary
            entry = self._catalog.models.get(request.model)
            native = entry.defaults.width * entry.defaults.height if entry else 0
            area = request.width * request.height / native if native else 1.0
            rows = area * request.row_steps / request.steps
        except (ValidationError, ArithmeticError):
            return ordinary
        return RemainingWork(job_id, rows, request.steps) if 0 <= rows <= _MOST_WORK else ordinary

    async def _steps(self, job_ids: list[str]) -> dict[str, int]:
        """Steps that each running job has done."""
        texts = await self._read_fields(job_ids, "step")
        return {
            job_id: int(read_number(text, most=self._works[job_id].steps) or 0)
            for job_id, text in zip(job_ids, texts, strict=True)
        }

    async def _learn_pace(self, now: float, steps: dict[str, int], warm_rate: float) -> None:
        self._pace.seed(warm_rate)
        rows = sum(self._works[name].rows for name, step in steps.items() if step)
        ended = [name for name in self._checkpoints if name not in steps]
        for name, step in steps.items():
            checkpoint = self._checkpoints.get(name)
            # Before its first step, a job may not have started.
            if checkpoint is None or step < checkpoint.step or (step and not checkpoint.step):
                self._checkpoints[name] = _Checkpoint(now, step, rows)
            elif step - checkpoint.step >= STEPS_PER_OBSERVATION:
                seconds = (now - checkpoint.at) / (step - checkpoint.step)
                self._pace.observe_step((rows + checkpoint.rows) / 2, seconds)
                self._checkpoints[name] = _Checkpoint(now, step, rows)
        for name in ended:
            del self._checkpoints[name]
            await self._learn_end(name)

    async def _learn_end(self, name: str) -> None:
        """Compare the prediction for a job with its actual time."""
        prediction = self._predictions.pop(name, None)
        [status] = await self._read_fields([name], "status")
        if status != Status.SUCCEEDED:
            return
        answer: Any = await self._redis.hmget(redis_keys.job(name), "metrics", "completed_at")
        metrics, completed_at = answer
        try:
            spent = JobMetrics.model_validate_json(metrics or "{}")
        except ValidationError:
            return
        overhead = spent.total_seconds - spent.queue_seconds - spent.denoise_seconds
        if overhead <= _MOST_OVERHEAD_SECONDS:
            self._pace.observe_overhead(max(0.0, overhead))
        ended_at = read_number(completed_at)
        if prediction is not None and ended_at is not None:
            first_at, seconds = prediction
            self._pace.observe_end(seconds, ended_at - first_at)
