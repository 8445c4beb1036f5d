"""Who holds which RQ job, and until when. Knows nothing of what a job does.

RQ keeps the ids of waiting jobs in a list, of dequeued ones in an intermediate list, and of
running ones in a sorted set (`StartedJobRegistry`) scored by the end of their lease. Every move
between them is one Lua script here, so a worker may be killed between any two lines and no id
is lost or doubled, and no lock is ever held that a dead worker could leave behind. The clock is
Redis' own, so workers need not agree on the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.exceptions import DequeueTimeout
from rq.executions import Execution, ExecutionRegistry
from rq.results import Result
from rq.utils import now, utcformat

from workers.rq_job import QueuedJob

_NOW: Final = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
"""

_TAKE: Final = (
    _NOW
    + """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[2])
redis.call('HSET', KEYS[3], 'status', 'started', 'worker_name', ARGV[4], 'started_at', ARGV[5])
redis.call('PERSIST', KEYS[3])
return 1
"""
)

_RENEW: Final = (
    _NOW
    + """
for index = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[index]) end
"""
)

# An id goes back only if it left where it was, so two callers cannot double it.
_RETURN: Final = """
local left = redis.call(ARGV[1], KEYS[1], unpack(ARGV, 4))
if left == 0 then return 0 end
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('HSET', KEYS[3], 'status', 'queued')
redis.call(ARGV[3], KEYS[2], ARGV[2])
return 1
"""

_EXPIRED: Final = (
    _NOW
    + """
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
for _, member in ipairs(members) do redis.call('ZREM', KEYS[1], member) end
local live = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  live[string.match(member, '^(.*):[^:]*$') or member] = true
end
local returned = {}
for _, member in ipairs(members) do
  local id = string.match(member, '^(.*):[^:]*$')
  if id and not live[id] and redis.call('EXISTS', ARGV[1] .. id) == 1 then
    live[id] = true
    redis.call('HSET', ARGV[1] .. id, 'status', 'queued')
    redis.call('LPUSH', KEYS[2], id)
    table.insert(returned, id)
  end
end
return returned
"""
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on one RQ job, until it ends or is not renewed in time."""

    job_id: str
    execution: Execution


class Leases:
    """Takes, renews and returns jobs of one queue. Safe from many threads.

    Every method raises `redis.RedisError` where Redis does not answer.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        worker_name: str,
        lease_seconds: float,
    ) -> None:
        self._redis: Redis = queue.connection
        self._queue = queue
        self._waiting = queue.key
        self._moving = queue.intermediate_queue_key
        self._registry = queue.started_job_registry
        self._worker_name = worker_name
        self.seconds = math.ceil(lease_seconds)
        self._take = self._redis.register_script(_TAKE)
        self._renew = self._redis.register_script(_RENEW)
        self._return = self._redis.register_script(_RETURN)
        self._expired = self._redis.register_script(_EXPIRED)

    def take(self, job_id: str) -> Lease | None:
        """Begin the lease of a dequeued job; `None` where another worker has it by now."""
        execution = Execution(uuid4().hex, job_id, self._redis, self._worker_name)
        taken = self._take(
            keys=[self._moving, self._registry.key, QueuedJob.key_for(job_id)],
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
        with self._redis.pipeline() as pipeline:
            # For RQ's own tools alone (`rq info`); nothing here reads it back.
            execution.save(self.seconds + 60, pipeline)
            ExecutionRegistry(job_id, pipeline).add(execution, self.seconds, pipeline)
            pipeline.sadd(execution.worker_executions_key, execution.composite_key)
            pipeline.expire(execution.worker_executions_key, self.seconds + 60)
            pipeline.execute()
        return Lease(job_id, execution)

    def renew(self, leases: Sequence[Lease]) -> None:
        """Prolong all leases that still hold; one that was taken away stays so."""
        if not leases:
            return
        members = [lease.execution.composite_key for lease in leases]
        self._renew(keys=[self._registry.key], args=[self.seconds, *members])
        with self._redis.pipeline(transaction=False) as pipeline:
            for lease in leases:
                pipeline.expire(lease.execution.key, self.seconds + 60)
                ExecutionRegistry(lease.job_id, pipeline).add(
                    lease.execution, self.seconds, pipeline, xx=True
                )
            pipeline.expire(leases[0].execution.worker_executions_key, self.seconds + 60)
            pipeline.execute()

    def drop(self, lease: Lease) -> None:
        """End the lease of a job whose record is final, and delete all that RQ keeps of it."""
        job_id = lease.job_id
        with self._redis.pipeline(transaction=True) as pipeline:
            self._forget_execution(lease, pipeline)
            pipeline.delete(
                QueuedJob.key_for(job_id),
                QueuedJob.dependents_key_for(job_id),
                Result.get_key(job_id),
            )
            pipeline.execute()

    def abandon(self, lease: Lease) -> None:
        """End the lease of a job that another worker holds by now; its RQ job stays."""
        with self._redis.pipeline(transaction=True) as pipeline:
            self._forget_execution(lease, pipeline)
            pipeline.execute()

    def hand_back(self, lease: Lease, *, to_front: bool = True) -> None:
        """Put a job back to the front of the queue, or to its back, for any worker."""
        member = lease.execution.composite_key
        push = "LPUSH" if to_front else "RPUSH"
        self._give("ZREM", self._registry.key, lease.job_id, [member], push=push)
        self.abandon(lease)

    def undo_dequeue(self, job_id: str) -> None:
        """Put a job that was dequeued and not taken back to the front of the queue."""
        self._give("LREM", self._moving, job_id, ["1", job_id])

    def refuse(self, job_id: str) -> None:
        """Delete a dequeued RQ job that must not run."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.lrem(self._moving, 0, job_id)
            pipeline.delete(QueuedJob.key_for(job_id))
            pipeline.execute()

    def dequeue(self, timeout_seconds: int) -> str | None:
        """Move the next id to the intermediate list; `None` where none comes in time."""
        try:
            _, job_id = Queue.lmove(self._redis, self._waiting, timeout_seconds)
        except DequeueTimeout:
            return None
        if not job_id.isascii():  # none of ours, and RQ could not even name it
            self._redis.lrem(self._moving, 0, job_id)
            return None
        return job_id.decode() if isinstance(job_id, bytes) else str(job_id)

    def return_expired(self) -> list[str]:
        """Put every job whose lease has run out back to the front; their ids."""
        returned = self._expired(
            keys=[self._registry.key, self._waiting],
            args=[QueuedJob.redis_job_namespace_prefix],
        )
        return [job_id.decode(errors="replace") for job_id in returned]

    def dequeued(self) -> list[str]:
        """Ids between dequeue and lease; longer than a moment only if their worker is gone."""
        ids = self._redis.lrange(self._moving, 0, -1)
        return [job_id.decode() for job_id in ids if isinstance(job_id, bytes) and job_id.isascii()]

    def _give(
        self, removal: str, source: str, job_id: str, args: list[str], *, push: str = "LPUSH"
    ) -> None:
        self._return(
            keys=[source, self._waiting, QueuedJob.key_for(job_id)],
            args=[removal, job_id, push, *args],
        )

    def _forget_execution(self, lease: Lease, pipeline: Pipeline) -> None:
        execution, registry = lease.execution, ExecutionRegistry(lease.job_id, self._redis)
        self._registry.remove_execution(execution, pipeline=pipeline)
        pipeline.delete(execution.key, registry.key)
        pipeline.srem(execution.worker_executions_key, execution.composite_key)
