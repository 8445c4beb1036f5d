"""Three ways to serve the same jobs: a plain loop, one at a time behind a queue, and the engine."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from bench.engine.plain import Plain
from workers.engine.api import EngineJob, Ticket
from workers.engine.engine import Engine


class Contender(Protocol):
    """Serves jobs that come while others are served."""

    def submit(self, job: EngineJob) -> "Future[float]":
        """Take a job; the future gives the time (`perf_counter`) at which its picture was there."""


def run_plain(plain: Plain, job: EngineJob) -> None:
    """Call the plain pipeline once, inputs to picture."""
    plain.pictures(job.request, job.read, output_type="pil")


class OneAtATime:
    """What cog and the servers like it do: one thread calls the pipeline for the oldest job."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._queue: queue.SimpleQueue[tuple[EngineJob, Future[float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, job: EngineJob) -> "Future[float]":
        """See `Contender`."""
        future: Future[float] = Future()
        self._queue.put((job, future))
        return future

    def stop(self) -> None:
        """End the thread once its jobs are done."""
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (taken := self._queue.get()) is not None:
            job, future = taken
            run_plain(self._plain, job)
            future.set_result(time.perf_counter())


class Batched:
    """The engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, job: EngineJob) -> "Future[float]":
        """See `Contender`."""
        future: Future[float] = Future()
        ticket = self._engine.submit(job)
        threading.Thread(target=_await, args=(ticket, future), daemon=True).start()
        return future


def _await(ticket: Ticket, future: "Future[float]") -> None:
    try:
        ticket.result()
        future.set_result(time.perf_counter())
    except Exception as error:  # noqa: BLE001 (raised again where the future is read)
        future.set_exception(error)


def at_once(contender: Contender, jobs: Sequence[EngineJob]) -> float:
    """Seconds until the last of jobs that are submitted together is done."""
    started = time.perf_counter()
    futures = [contender.submit(job) for job in jobs]
    return max(future.result() for future in futures) - started


def over_time(contender: Contender, jobs: Sequence[EngineJob], gap: float) -> list[float]:
    """Latencies (seconds) of jobs of which one comes every `gap` seconds."""
    started, futures = [], []
    begin = time.perf_counter()
    for number, job in enumerate(jobs):
        time.sleep(max(0.0, begin + number * gap - time.perf_counter()))
        started.append(time.perf_counter())
        futures.append(contender.submit(job))
    return [future.result() - start for future, start in zip(futures, started, strict=True)]
