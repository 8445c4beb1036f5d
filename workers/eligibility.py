"""Whether and beside whom a job may start on this worker.

Requeue: while a new release or `models.yaml` is rolled out, the API may accept what some workers
cannot read or do not serve yet. Such a job is not started: it goes to the end of the queue, until a
worker that serves it takes it or its deadline passes.

Quarantine: a job during which two workers have ended runs alone. It could otherwise end the
attempts of all jobs that share a batch with it.
"""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Final

from pydantic import ValidationError
from redis import Redis

from service.core import worker_registry
from service.core.job import Job, Status, read_number
from service.core.params import GenerateRequest
from service.core.queue import server_time

REQUEUE_PAUSE_SECONDS: Final = 1.0
"""How long such a job is held before it is requeued, so that workers do not spin on it."""


class Eligibility:
    """Decides by a job's record whether this worker starts it."""

    def __init__(
        self,
        redis: Redis,
        serves: Callable[[GenerateRequest], bool],
        models: Container[str],
    ) -> None:
        """`serves` and `models` are this worker's engine's."""
        self._redis = redis
        self._serves = serves
        self._models = models

    def should_requeue(self, record: dict[str, str]) -> bool:
        """Whether this worker cannot run a job and another one still may.

        After the deadline (a job that was started once has none) it waits only while a live worker
        serves its model. It does not wait where this worker has the model as well: then an adapter
        or a ControlNet was removed. Raises `redis.RedisError`.
        """
        try:
            job = Job.from_hash(record)
        except ValidationError:
            return self._may_be_newer(record)
        if job.status.is_terminal or self._serves(job.request):
            return False
        if server_time(self._redis) <= (job.deadline_at or 0.0):
            return True
        model = job.request.model
        return model not in self._models and worker_registry.is_served(self._redis, model)

    def _may_be_newer(self, record: dict[str, str]) -> bool:
        """Whether a worker of a newer version may read a record that this one cannot."""
        if record.get("status") not in (Status.QUEUED, Status.PROCESSING):
            return False
        deadline = read_number(record.get("deadline_at"))
        return deadline is not None and server_time(self._redis) <= deadline


class Quarantine:
    """Admits many ordinary jobs at once, or one suspect; suspects go first."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._ordinary_running = 0
        self._suspect_running = False
        self._suspects = 0

    @contextmanager
    def enter(self, *, suspect: bool) -> Iterator[None]:
        """Wait for admission and hold it for the block."""
        with self._changed:
            if suspect:
                self._suspects += 1
                self._changed.wait_for(
                    lambda: not self._suspect_running and self._ordinary_running == 0
                )
                self._suspect_running = True
            else:
                self._changed.wait_for(lambda: not self._suspect_running and self._suspects == 0)
                self._ordinary_running += 1
        try:
            yield
        finally:
            with self._changed:
                if suspect:
                    self._suspects -= 1
                    self._suspect_running = False
                else:
                    self._ordinary_running -= 1
                self._changed.notify_all()
