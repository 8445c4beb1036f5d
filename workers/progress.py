"""Progress from the engine's thread to Redis, and cancellation back.

The engine must never wait for Redis, so its callbacks only append to a queue; one thread writes
them. When Redis is slow, the newest steps of a job are kept. A job whose claim no longer holds
(canceled, or another worker's by now) is canceled in the engine.
"""

import base64
import io
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import structlog
from PIL.Image import Image
from redis import Redis, RedisError, ResponseError

from service.core import redis_keys, redis_server
from service.core.transitions import Claim, Step, Transitions
from workers.engine.api import Ticket

logger = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.2
"""How often a job that takes no steps is checked for cancellation."""
STEPS_KEPT: Final = 32
"""Steps of one job that may wait for Redis; the newest are kept."""


@dataclass(eq=False)
class JobProgress:
    """The progress of one job that is not written yet; the engine's `Listener`.

    The engine's thread appends without a lock: operations of a deque are atomic.
    """

    claim: Claim
    _wake: threading.Event
    ticket: Ticket | None = None
    steps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    previews: deque[tuple[int, Image]] = field(default_factory=lambda: deque(maxlen=1))
    writing: threading.Lock = field(default_factory=threading.Lock)
    """Held while steps are taken and written, so that they stay in order."""

    def on_step(self, step: int, total: int) -> None:
        """Queue a finished step; called on the engine's thread."""
        self.steps.append((step, total))
        self._wake.set()

    def on_preview(self, step: int, image: Image) -> None:
        """Queue a preview; called on the engine's thread."""
        self.previews.append((step, image))
        self._wake.set()

    def cancel(self) -> None:
        """Cancel the job in the engine."""
        ticket = self.ticket  # another thread may unset it
        if ticket is not None:
            ticket.cancel()


class ProgressWriter(threading.Thread):
    """The thread that writes progress and checks for cancellation."""

    def __init__(self, redis: Redis, transitions: Transitions) -> None:
        super().__init__(name="progress", daemon=True)
        self._redis = redis
        self._transitions = transitions
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._jobs: set[JobProgress] = set()

    def add(self, claim: Claim) -> JobProgress:
        """Start to write the progress of a job; set its ticket as soon as there is one."""
        job = JobProgress(claim, self._wake)
        with self._lock:
            self._jobs.add(job)
        return job

    def remove(self, job: JobProgress) -> None:
        """Write what is left of a job's steps and stop."""
        with self._lock:
            self._jobs.discard(job)
        # A ticket may refer to its listener; a reference cycle would delay freeing both.
        job.ticket = None
        try:
            self._write_steps([job])
        except RedisError as error:
            logger.warning("progress not written", cause=redis_server.explain(error))

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._wake.set()

    def run(self) -> None:
        """Write what is queued, check the claims, wait for more."""
        asked = 0.0
        while not self._closing.is_set():
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
            with self._lock:
                jobs = list(self._jobs)
            try:
                lost = self._write_steps(jobs)
                if time.monotonic() - asked >= POLL_SECONDS:
                    lost |= self._lost(jobs)
                    asked = time.monotonic()
                for job in lost:
                    job.cancel()
                for job in jobs:
                    if job.previews and job not in lost:
                        self._write_preview(job)
            except RedisError as error:
                logger.warning("progress not written", cause=redis_server.explain(error))
                self._closing.wait(1)
            except Exception:
                logger.exception("progress not written")
                self._closing.wait(1)

    def _write_preview(self, job: JobProgress) -> None:
        try:
            held = self._transitions.preview(job.claim, _preview(*job.previews.popleft()))
        except ResponseError as error:
            if not redis_server.is_full(error):
                raise
            # It is dropped; the job goes on and ends.
            logger.debug("preview not written: Redis is full", job_id=job.claim.job_id)
            return
        if not held:
            job.cancel()

    def _write_steps(self, jobs: Sequence[JobProgress]) -> set[JobProgress]:
        """Write the queued steps, all in one round trip; the jobs whose claims no longer hold."""
        with ExitStack() as writing:
            taken = []
            for job in jobs:
                writing.enter_context(job.writing)
                # Not until it is empty: the others wait.
                taken += [(job, *job.steps.popleft()) for _ in range(len(job.steps))]
            held = self._transitions.progress(
                [Step(job.claim, step, total) for job, step, total in taken]
            )
        return {job for (job, _, _), holds in zip(taken, held, strict=True) if not holds}

    def _lost(self, jobs: Sequence[JobProgress]) -> set[JobProgress]:
        """The jobs whose claims no longer hold; asked also of those that take no steps."""
        if not jobs:
            return set()
        with self._redis.pipeline(transaction=False) as pipeline:
            for job in jobs:
                pipeline.hget(redis_keys.job(job.claim.job_id), "fence")
            fences = redis_server.readable(pipeline.execute(raise_on_error=False))
        return {
            job
            for job, fence in zip(jobs, fences, strict=True)
            if fence != job.claim.token.encode()
        }


def _preview(step: int, image: Image) -> dict[str, object]:
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    return {"step": step, "content_type": "image/jpeg", "data": data}
