"""A discrete-event simulation of workers that batch by step; the autoscaler is passed in.

Events are arrivals, steps of workers, workers that become warm, and ticks of a scaler. A worker
takes jobs between steps from one queue, oldest first, as `workers/consumer.py` does; a step of k
jobs takes `Device.step_seconds(k)`.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. A job alone takes `job_seconds` for all its steps, plus `around_seconds`.

    Of a step, the share `fixed` is paid once however many jobs share it (launches, reading the
    weights); the rest grows with the jobs. What lies around the steps (encoding, decoding, upload)
    overlaps the steps of others.
    """

    job_seconds: float
    fixed: float = 0.1
    around_seconds: float = 0.15
    batch: int = 8
    """Jobs that share a step; more gain nothing (the engine's cap, found at warm-up)."""
    slots: int = 16
    """Jobs that a worker takes out of the queue."""

    def step_seconds(self, jobs: int, steps: int) -> float:
        """Seconds of one step that `jobs` jobs of `steps` steps share."""
        return self.job_seconds / steps * (self.fixed + (1 - self.fixed) * jobs)

    def capacity(self) -> float:
        """Jobs a second at full batches."""
        full = self.job_seconds * (self.fixed + (1 - self.fixed) * self.batch)
        return self.batch / full


@dataclass(slots=True)
class Job:
    """One job and when what happened to it (seconds)."""

    arrived: float
    steps: int
    left: int = 0
    started: float = NEVER
    ended: float = NEVER


@dataclass(slots=True, eq=False)
class Worker:
    """One GPU's worker: warm from `warm_at` on, taking no jobs once it drains."""

    started_at: float
    warm_at: float
    held: deque[Job] = field(default_factory=deque)
    draining: bool = False
    stepping: bool = False
    gone_at: float = NEVER


Scaler = Callable[[float, int, int, int], int]
"""(now, waiting jobs, running jobs, workers) -> workers wanted. Called at every tick."""


@dataclass(slots=True)
class Tick:
    """What stood at one tick of the scaler."""

    at: float
    waiting: int
    running: int
    workers: int
    warm: int


class Cluster:
    """One run of the simulation."""

    def __init__(
        self,
        device: Device,
        *,
        workers: int,
        cold_start_seconds: float = 0.0,
        scaler: Scaler | None = None,
        tick_seconds: float = 15.0,
    ) -> None:
        self._device = device
        self._cold = cold_start_seconds
        self._scaler = scaler
        self._tick_seconds = tick_seconds
        self._queue: deque[Job] = deque()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = itertools.count()
        self.workers = [Worker(0.0, 0.0) for _ in range(workers)]
        self.all_workers = list(self.workers)
        self.jobs: list[Job] = []
        self.ticks: list[Tick] = []

    def run(self, arrivals: Iterable[float], *, steps: int, until: float) -> None:
        """Let jobs of `steps` steps arrive at the given times; go on until all have ended."""
        incoming = iter(arrivals)

        def arrive(now: float) -> None:
            job = Job(now, steps, left=steps)
            self.jobs.append(job)
            self._queue.append(job)
            self._wake(now)
            following = next(incoming, NEVER)
            if following < until:
                self._at(following, arrive)

        first = next(incoming, NEVER)
        if first < until:
            self._at(first, arrive)
        if self._scaler is not None:
            self._at(0.0, lambda now: self._tick(now, until))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)

    def worker_seconds(self, until: float) -> float:
        """GPU time paid for, from the start of each worker to its end."""
        return sum(max(0.0, min(w.gone_at, until) - w.started_at) for w in self.all_workers)

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), event))

    def _wake(self, now: float) -> None:
        """Let an idle worker take the job; the one with the fewest asks first."""
        for worker in sorted(self.workers, key=lambda w: len(w.held)):
            if not worker.stepping and worker.warm_at <= now and not worker.draining:
                self._step(worker, now)
                return

    def _take(self, worker: Worker, now: float) -> None:
        while self._queue and not worker.draining and len(worker.held) < self._device.slots:
            job = self._queue.popleft()
            job.started = now
            worker.held.append(job)

    def _step(self, worker: Worker, now: float) -> None:
        self._take(worker, now)
        batch = list(itertools.islice(worker.held, self._device.batch))
        if not batch:
            worker.stepping = False
            if worker.draining:
                self._leave(worker, now)
            return
        worker.stepping = True
        seconds = self._device.step_seconds(len(batch), batch[0].steps)

        def done(then: float) -> None:
            for job in batch:
                job.left -= 1
                if job.left == 0:
                    job.ended = then + self._device.around_seconds
                    worker.held.remove(job)
            self._step(worker, then)

        self._at(now + seconds, done)

    def _leave(self, worker: Worker, now: float) -> None:
        worker.gone_at = now
        if worker in self.workers:
            self.workers.remove(worker)

    def _tick(self, now: float, until: float) -> None:
        assert self._scaler is not None
        staying = [w for w in self.workers if not w.draining]
        running = sum(len(w.held) for w in self.workers)
        warm = sum(w.warm_at <= now for w in staying)
        self.ticks.append(Tick(now, len(self._queue), running, len(staying), warm))
        wanted = self._scaler(now, len(self._queue), running, len(staying))
        for _ in range(wanted - len(staying)):
            worker = Worker(now, now + self._cold)
            self.workers.append(worker)
            self.all_workers.append(worker)
            self._at(worker.warm_at, lambda then, w=worker: self._step(w, then))  # type: ignore[misc]
        # Kubernetes takes pods away without asking which of them are busy: the youngest first.
        for worker in sorted(staying, key=lambda w: -w.started_at)[: max(0, len(staying) - wanted)]:
            worker.draining = True
            if not worker.stepping:
                self._leave(worker, now)
        if now < until or self._queue or running:
            self._at(now + self._tick_seconds, lambda then: self._tick(then, until))
