"""`python -m bench.sleeping_worker`: a whole worker whose denoising step only sleeps.

It stands in for a GPU, which leaves the CPU free while it works, so that several workers on one
machine show what queue, Redis and storage cost them. The settings are a worker's own;
BENCH_STEP_SECONDS is how long a step takes, whatever its rows.
"""

import os
import threading
import time
from concurrent.futures import Future
from typing import Any, Final

from PIL import Image
from redis import Redis

from service.core.catalog import Catalog
from service.core.errors import JobFailed
from service.core.params import GenerateRequest
from workers import __main__ as worker
from workers.engine.api import Canceled, EngineJob, EngineResult, Listener

STEP_SECONDS: Final = float(os.environ.get("BENCH_STEP_SECONDS", "0.1"))


class Sleeper:
    """A job in the sleeping engine; it is its own ticket."""

    def __init__(self, job: EngineJob, listener: Listener | None) -> None:
        self.job = job
        self.listener = listener
        self.step = 0
        self.began = time.monotonic()
        self.future: Future[EngineResult] = Future()

    def cancel(self) -> None:
        """Give the job up."""
        if not self.future.done():
            self.future.set_exception(Canceled())

    def result(self, timeout: float | None = None) -> EngineResult:
        """Wait for the picture."""
        return self.future.result(timeout)


class SleepingEngine:
    """Batches by step as the engine does, and sleeps where that one computes."""

    models = ("shapes",)
    device = "sleep"
    row_steps_per_second = 1 / STEP_SECONDS

    def __init__(self) -> None:
        self._jobs: list[Sleeper] = []
        self._changed = threading.Condition()
        self._stopped = False
        self.last_step_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sleeper", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def serves(self, _: GenerateRequest) -> bool:
        """Whatever is asked for."""
        return True

    def submit(self, job: EngineJob, listener: Listener | None = None) -> Sleeper:
        """Let a job join before the next step."""
        sleeper = Sleeper(job, listener)
        with self._changed:
            self._jobs.append(sleeper)
            self._changed.notify()
        return sleeper

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopped:
                    self._changed.wait(1)
                    self.last_step_at = time.monotonic()
                if self._stopped:
                    return
                batch = list(self._jobs)
            time.sleep(STEP_SECONDS)
            self.last_step_at = time.monotonic()
            for sleeper in batch:
                self._advance(sleeper)

    def _advance(self, sleeper: Sleeper) -> None:
        request = sleeper.job.request
        sleeper.step += 1
        if sleeper.listener is not None:
            sleeper.listener.on_step(sleeper.step, request.steps)
        if sleeper.step < request.steps and not sleeper.future.done():
            return
        with self._changed:
            self._jobs.remove(sleeper)
        if not sleeper.future.done():
            try:
                upload = sleeper.job.read(request.images[0].key)
            except JobFailed as error:
                sleeper.future.set_exception(error)
                return
            size = (request.width, request.height)
            image = upload.resize(size, Image.Resampling.NEAREST)  # as little work as can be
            took = time.monotonic() - sleeper.began
            images = (image,) * request.num_images
            sleeper.future.set_result(EngineResult(images, 0, took, 0, len(self._jobs), "miss"))


class SleepingWorker(worker.Worker):
    """A worker in everything but its engine."""

    def _load(self, _: Catalog, __: Redis) -> Any:
        return SleepingEngine()


if __name__ == "__main__":
    worker.Worker = SleepingWorker  # type: ignore[misc]  # the one seam of the process's main
    worker.main()
