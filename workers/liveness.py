"""The threads that keep a worker's word: its heartbeat, and the sweep for jobs of dead workers.

Both run while jobs compute, and both live on while Redis is away.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from redis import RedisError

from workers.leases import Leases

logger = structlog.get_logger(__name__)

SWEEP_SECONDS: Final = 1.0


class Repeat(threading.Thread):
    """Calls `action` every `seconds` until closed; errors of Redis are logged and survived."""

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
                logger.warning("a beat was missed", thread=self.name, cause=type(error).__name__)
            except Exception:
                logger.exception("a beat was missed", thread=self.name)

    def close(self) -> None:
        """End the thread after its present call."""
        self._closing.set()
        self.join(timeout=2)


class Sweep:
    """Returns the jobs of workers that died; every worker sweeps, none needs a lock."""

    def __init__(
        self,
        leases: Leases,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._clock = clock
        self._first_seen: dict[str, float] = {}
        self._answering_since: float | None = None

    def __call__(self) -> None:
        """Return what is overdue. Raises `redis.RedisError`.

        After Redis was away every lease has run out, so the living get one lease's time to renew
        theirs before anything is taken from them.
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
        """Return jobs whose worker died between taking them and leasing them."""
        for job_id, since in self._first_seen.items():
            if now - since > self._leases.seconds:
                logger.warning("job of a lost worker returned", job_id=job_id)
                self._leases.undo_dequeue(job_id)
