"""Two ways to serve the same jobs: plain pipelines one at a time behind a queue, and the engine."""

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Final, Protocol

import torch

from bench.engine.plain import Plain
from workers.engine.api import EngineJob, Ticket
from workers.engine.engine import Engine

SPIN: Final = "GOMP_SPINCOUNT"
LIBGOMPS_OWN: Final = "300000"


class Contender(Protocol):
    """Serves jobs that come while others are served."""

    def submit(self, job: EngineJob) -> "Future[float]":
        """Take a job; the future gives the time (`perf_counter`) at which its picture was there."""


class PlainProcess:
    """Plain pipelines in a process of their own, as a script or a server like cog runs them.

    It calls the pipeline for the oldest job, on all cores. In the engine's process the two would
    slow each other (`workers.engine.device.set_threads`).
    """

    def __init__(self, kind: type[Plain], threads: int, *arguments: Any) -> None:
        """Start the process; `kind(*arguments)` are its pipelines."""
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        ours = os.environ[SPIN]
        os.environ[SPIN] = LIBGOMPS_OWN  # what `import workers` sets is the engine's advantage
        try:
            self._pool.submit(_load, kind, threads, arguments).result()
        finally:
            os.environ[SPIN] = ours

    def submit(self, job: EngineJob) -> "Future[float]":
        """See `Contender`."""
        return self._pool.submit(_run, job)

    def stop(self) -> None:
        """End the process."""
        self._pool.shutdown()


_loaded: Plain
"""The pipelines, in their process."""


def _load(kind: type[Plain], threads: int, arguments: tuple[Any, ...]) -> None:
    global _loaded  # noqa: PLW0603 (a process of a pool has no other place)
    torch.set_num_threads(threads)
    _loaded = kind(*arguments)


def _run(job: EngineJob) -> float:
    _loaded.pictures(job.request, job.read, output_type="pil")
    return time.perf_counter()


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
