"""What keeps a worker and its jobs alive: periodic threads, the lease reaper, the watchdog.

All of it runs while jobs compute, and goes on while Redis does not answer.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog
from redis import RedisError

from service.core import redis_server
from workers.leases import Leases

logger = structlog.get_logger(__name__)

REAP_SECONDS: Final = 1.0
"""How often the lease reaper is to be called."""
CHECK_SECONDS: Final = 1.0
"""How often the watchdog is to be called."""
PAUSE_SECONDS: Final = 5.0
"""A watchdog that was not called for so long was paused together with the engine."""
EXIT_STATUS: Final = 70  # EX_SOFTWARE of sysexits.h


class PeriodicThread(threading.Thread):
    """Calls `action` every `seconds` until closed; errors are logged and the calls go on."""

    def __init__(self, name: str, action: Callable[[], None], seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self._action = action
        self._seconds = seconds
        self._closing = threading.Event()

    def run(self) -> None:
        """Call, wait, repeat."""
        while not self._closing.wait(self._seconds):
            try:
                self._action()
            except RedisError as error:
                logger.warning(
                    "periodic call failed", thread=self.name, cause=redis_server.explain(error)
                )
            except Exception:
                logger.exception("periodic call failed", thread=self.name)

    def close(self) -> None:
        """End the thread after its present call."""
        self._closing.set()
        self.join(timeout=2)


class LeaseReaper:
    """Returns the jobs of dead workers to the queue. Every worker runs one; none needs a lock."""

    def __init__(self, leases: Leases, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._leases = leases
        self._clock = clock
        self._first_seen: dict[str, float] = {}
        self._answering_since: float | None = None

    def __call__(self) -> None:
        """Return what is overdue. Raises `redis.RedisError`.

        After an outage of Redis every lease has run out, so live workers get half a lease's time
        to renew theirs before any job is returned.
        """
        now = self._clock()
        try:
            dequeued = self._leases.dequeued()
            self._first_seen = {job_id: self._first_seen.get(job_id, now) for job_id in dequeued}
            if self._answering_since is None:
                self._answering_since = now
            if now - self._answering_since < self._leases.seconds / 2:
                return
            for job_id in self._leases.return_expired():
                logger.warning("job of a lost worker returned", job_id=job_id)
            self._return_stranded(now)
        except RedisError:
            self._answering_since = None
            raise

    def _return_stranded(self, now: float) -> None:
        """Return jobs whose worker died between dequeue and lease."""
        for job_id, since in self._first_seen.items():
            if now - since > self._leases.seconds:
                logger.warning("job of a lost worker returned", job_id=job_id)
                self._leases.undo_dequeue(job_id)


class Watched(Protocol):
    """What the watchdog looks at; `workers.engine.engine.Engine` is one."""

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""

    @property
    def last_step_at(self) -> float:
        """`time.monotonic()` of the last finished step, kept fresh while there is nothing to do."""


class Watchdog:
    """Ends a worker whose engine hangs, so that its supervisor starts a new one.

    It checks finished denoising steps, not whether a thread runs. A process that was itself paused
    (SIGSTOP, a moved machine) is not hung: its time starts anew. The jobs of an ended worker are
    returned when their leases run out.
    """

    def __init__(
        self,
        engine: Watched,
        *,
        step_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """`leave` ends the process at once: a hung thread would block an orderly exit."""
        self._engine = engine
        self._step_timeout_seconds = step_timeout_seconds
        self._clock = clock
        self._leave = leave
        self._called_at = self._resumed_at = clock()

    def healthy(self) -> bool:
        """Whether the engine is alive and has finished a step lately, or has nothing to do."""
        return self._engine.alive and self._idle_seconds() <= self._step_timeout_seconds

    def __call__(self) -> None:
        """End the process if the engine is not healthy."""
        now = self._clock()
        if now - self._called_at > PAUSE_SECONDS:
            logger.warning("worker was paused", seconds=round(now - self._called_at, 1))
            self._resumed_at = now
        self._called_at = now
        if not self.healthy():
            logger.critical(
                "the engine makes no progress; the worker exits",
                engine_alive=self._engine.alive,
                seconds_without_step=round(self._idle_seconds(), 1),
            )
            self._leave(EXIT_STATUS)

    def _idle_seconds(self) -> float:
        return self._clock() - max(self._engine.last_step_at, self._resumed_at)
