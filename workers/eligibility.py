"""Whether a job is left to another worker, because this one does not serve what it asks for.

While a new `models.yaml` is rolled out, the API may know models that some workers do not know yet.
Such a job is not started here: it goes to the back of the queue, until a worker that serves it
takes it, or until its deadline, which says how long waiting for a worker makes sense.
"""

import time
from collections.abc import Callable, Container
from typing import Final

from pydantic import ValidationError
from redis import Redis

from service.core import worker_registry
from service.core.job import Job
from service.core.params import GenerateRequest

PAUSE_SECONDS: Final = 1.0
"""How long such a job is held before it goes back, so that workers do not spin on it."""


class Elsewhere:
    """Tells the jobs of others by their records."""

    def __init__(
        self,
        redis: Redis,
        serves: Callable[[GenerateRequest], bool],
        models: Container[str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`serves` and `models` are this worker's engine's."""
        self._redis = redis
        self._serves = serves
        self._models = models
        self._clock = clock

    def is_awaited(self, record: dict[str, str]) -> bool:
        """Whether a job that this worker cannot do may still find one that can.

        A worker that says it serves the model counts for longer than the deadline, for a job that
        was started once has none any more. Not where this one has the model as well: then it is an
        adapter or a ControlNet that is served no more. Raises `redis.RedisError`.
        """
        try:
            job = Job.from_hash(record)
        except ValidationError:
            return False  # it is gone, or damaged: whoever claims it sees to that
        if job.status.is_terminal or self._serves(job.request):
            return False
        if self._clock() <= (job.deadline_at or 0.0):
            return True
        model = job.request.model
        return model not in self._models and worker_registry.is_served(self._redis, model)
