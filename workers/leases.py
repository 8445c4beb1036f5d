"""Leases of RQ jobs: which worker holds which job, and until when.

RQ keeps the ids of waiting jobs in a list, of dequeued ones in an intermediate list, and of
running ones in a sorted set (`StartedJobRegistry`) scored by the end of their lease. Every move
between them is one Lua script, so a worker may be killed between any two lines and no id is lost
or doubled, and there is no lock that a dead worker could leave behind. All times are Redis' own.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from uuid import uuid4

import structlog
from redis import OutOfMemoryError, Redis, RedisError
from redis.client import Pipeline
from rq import Queue
from rq.exceptions import DequeueTimeout, DeserializationError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job as RqJob
from rq.results import Result
from rq.utils import now, utcformat

from service.core import redis_keys, redis_server
from service.core.queue import TASK

logger = structlog.get_logger(__name__)

EXPIRED_AT_ONCE: Final = 100
"""Most leases that one call of `return_expired` ends."""


class Rejected(Exception):
    """Raised when an RQ job asks for anything but `TASK`."""


class QueuedJob(RqJob):
    """An RQ job whose hash can make it neither import, nor call back, nor call out.

    Whoever can write to Redis can name any function in an RQ job, or plant a pickle. So a worker
    imports no name that it reads there: it has one task and rejects everything else.
    """

    @property
    def func(self) -> NoReturn:
        """Raise `Rejected`: the task is never looked up by name."""
        raise Rejected("a worker runs no function by name")

    success_callback = failure_callback = stopped_callback = func

    def send_webhooks(self, *_args: Any, **_kwargs: Any) -> None:
        """Send nothing: the service's own webhooks are signed and repeated, RQ's are not."""


def check(job: RqJob) -> None:
    """Raise `Rejected` where a fetched job is anything but `TASK` on its own record."""
    try:
        genuine = (
            job.func_name == TASK
            and job.instance is None
            and list(job.args) == [job.id]
            and not job.kwargs
        )
    except (DeserializationError, TypeError) as error:
        raise Rejected("its payload is not the JSON that the API writes") from error
    if not genuine:
        raise Rejected("it names another task or other arguments than the API does")
    named = (job._success_callback_name, job._failure_callback_name, job._stopped_callback_name)  # noqa: SLF001  the public properties would import what they name
    if any(named) or job.webhooks:
        raise Rejected("it carries callbacks, which the API never sets")


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on one RQ job, until it ends or is not renewed in time."""

    job_id: str
    execution: Execution


class Leases:
    """Takes, renews and returns jobs of one queue. Thread-safe.

    Every method raises `redis.RedisError` where Redis does not answer.
    """

    def __init__(self, queue: Queue, *, worker_name: str, lease_seconds: float) -> None:
        self._redis: Redis = queue.connection
        self._waiting = queue.key
        self._dequeued = queue.intermediate_queue_key
        self._registry = queue.started_job_registry
        self._worker_name = worker_name
        self.seconds = math.ceil(lease_seconds)
        self._take = self._redis.register_script(redis_keys.load_script("lease_take"))
        self._renew = self._redis.register_script(redis_keys.load_script("lease_renew"))
        self._return = self._redis.register_script(redis_keys.load_script("lease_return"))
        self._expire = self._redis.register_script(redis_keys.load_script("lease_expire"))
        self._end = self._redis.register_script(redis_keys.load_script("lease_end"))
        self._remove = self._redis.register_script(redis_keys.load_script("queue_remove"))
        self._dequeue = self._redis.register_script(redis_keys.load_script("lease_dequeue"))

    def take(self, job_id: str) -> Lease | None:
        """Begin the lease of a dequeued job; `None` where another worker has it by now."""
        execution = Execution(uuid4().hex, job_id, self._redis, self._worker_name)
        taken = self._take(
            keys=[self._dequeued, self._registry.key, QueuedJob.key_for(job_id)],
            args=[
                job_id,
                execution.composite_key,
                self.seconds,
                self._worker_name,
                utcformat(now()),
            ],
        )
        if not taken:
            return None
        with self._for_rq_tools() as pipeline:
            execution.save(self.seconds + 60, pipeline)
            ExecutionRegistry(job_id, pipeline).add(execution, self.seconds, pipeline)
            pipeline.sadd(execution.worker_executions_key, execution.composite_key)
            pipeline.expire(execution.worker_executions_key, self.seconds + 60)
        return Lease(job_id, execution)

    def renew(self, leases: Sequence[Lease]) -> None:
        """Prolong all leases that still hold; one that was taken away stays so."""
        if not leases:
            return
        members = [lease.execution.composite_key for lease in leases]
        self._renew(keys=[self._registry.key], args=[self.seconds, *members])
        with self._for_rq_tools() as pipeline:
            for lease in leases:
                pipeline.expire(lease.execution.key, self.seconds + 60)
                ExecutionRegistry(lease.job_id, pipeline).add(
                    lease.execution, self.seconds, pipeline, xx=True
                )
            pipeline.expire(leases[0].execution.worker_executions_key, self.seconds + 60)

    def end(self, lease: Lease) -> None:
        """End the lease of a job whose record is final, and delete all that RQ keeps of it."""
        job_id = lease.job_id
        self._release(
            lease,
            QueuedJob.key_for(job_id),
            QueuedJob.dependents_key_for(job_id),
            Result.get_key(job_id),
        )

    def release(self, lease: Lease) -> None:
        """End the lease of a job that another worker holds by now; its RQ job stays."""
        self._release(lease)

    def requeue(self, lease: Lease, *, to_front: bool = True) -> None:
        """Put a job back to the front of the queue, or to its end, for any worker."""
        member = lease.execution.composite_key
        self._move("ZREM", self._registry.key, lease.job_id, [member], to_front=to_front)
        self.release(lease)

    def undo_dequeue(self, job_id: str) -> None:
        """Put a job that was dequeued and not taken back to the front of the queue."""
        self._move("LREM", self._dequeued, job_id, ["1", job_id])

    def reject(self, job_id: str) -> None:
        """Delete a dequeued RQ job that must not run."""
        keys = [self._dequeued, QueuedJob.key_for(job_id), redis_keys.DEADLINES]
        self._remove(keys=keys, args=[job_id])

    def dequeue(self, timeout_seconds: int) -> str | None:
        """Move the next id to the intermediate list; `None` where none comes in time."""
        try:
            _, job_id = Queue.lmove(self._redis, self._waiting, timeout_seconds)
        except DequeueTimeout:
            return None
        except OutOfMemoryError:
            job_id = self._dequeue(keys=[self._waiting, self._dequeued])
            if job_id is None:
                raise
        if not job_id.isascii():  # not written by the API, and RQ could not even name it
            self._redis.lrem(self._dequeued, 0, job_id)
            return None
        return job_id.decode() if isinstance(job_id, bytes) else str(job_id)

    def return_expired(self) -> list[str]:
        """Put jobs whose lease has run out back to the front; their ids."""
        seconds, microseconds = self._redis.time()
        members: Any = self._redis.zrangebyscore(
            self._registry.key, "-inf", seconds + microseconds / 1e6, start=0, num=EXPIRED_AT_ONCE
        )
        if not members:
            return []
        ids = [member.rpartition(b":")[0] for member in members]
        returned = self._expire(
            keys=[
                self._registry.key,
                self._waiting,
                *(QueuedJob.redis_job_namespace_prefix.encode() + job_id for job_id in ids),
            ],
            args=[word for pair in zip(ids, members, strict=True) for word in pair],
        )
        return [job_id.decode(errors="replace") for job_id in returned]

    def dequeued(self) -> list[str]:
        """Ids between dequeue and lease; longer than a moment only if their worker is gone."""
        ids = self._redis.lrange(self._dequeued, 0, -1)
        return [job_id.decode() for job_id in ids if isinstance(job_id, bytes) and job_id.isascii()]

    @contextmanager
    def _for_rq_tools(self) -> Iterator[Pipeline]:
        """A pipeline of what only RQ's own tools read (`rq info`), so its failure is not raised."""
        with self._redis.pipeline(transaction=False) as pipeline:
            yield pipeline
            try:
                pipeline.execute()
            except RedisError as error:
                logger.debug("lease not shown to RQ's tools", cause=redis_server.explain(error))

    def _move(
        self, removal: str, source: str, job_id: str, args: list[str], *, to_front: bool = True
    ) -> None:
        self._return(
            keys=[source, self._waiting, QueuedJob.key_for(job_id)],
            args=[job_id, "LPUSH" if to_front else "RPUSH", removal, *args],
        )

    def _release(self, lease: Lease, *keys: str) -> None:
        execution, registry = lease.execution, ExecutionRegistry(lease.job_id, self._redis)
        self._end(
            keys=[
                self._registry.key,
                execution.worker_executions_key,
                execution.key,
                registry.key,
                *keys,
            ],
            args=[execution.composite_key],
        )
