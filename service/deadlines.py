"""Ends jobs that no worker has started in time, whether or not a worker is there to see it.

It knows nothing of how long a job may wait; that stands in the job's record.
"""

from typing import Final

import structlog
from anyio import to_thread
from rq import Queue

from service.core.queue import forget
from service.core.transitions import Transitions

AT_ONCE: Final = 500
"""The rest has its turn at the next step."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Deadlines:
    """One a process, any number of processes: a job ends once, whoever comes first."""

    def __init__(self, queue: Queue, transitions: Transitions) -> None:
        self._queue = queue
        self._transitions = transitions

    async def step(self) -> None:
        """End what is overdue. Raises `redis.RedisError`."""
        await to_thread.run_sync(self._end_overdue)

    def _end_overdue(self) -> None:
        for job_id in self._transitions.overdue(AT_ONCE):
            if self._transitions.expire(job_id):
                forget(self._queue, job_id)
                log.info("job waited too long", job_id=job_id)
