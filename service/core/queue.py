"""The RQ queue that carries jobs from the API to the workers. JSON only, never pickle.

An RQ job holds nothing but the id of a record; what is to be done stands in the record. It
names its task by a dotted path that the API never imports.
"""

from collections.abc import Callable
from typing import Any, Final

from redis import Redis
from rq import Queue, Retry
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from service.core import redis_keys
from service.core.job import Job
from service.core.transitions import Transitions

TASK: Final = "workers.task.generate"
"""The only task that workers run; anything else in the queue is refused."""

NO_TIMEOUT: Final = -1
"""RQ's own timeout is off: a worker watches the progress of its steps instead."""

RECOVERIES: Final = 1_000_000
"""RQ requeues a job whose lease ran out so often; `Transitions.claim` holds the real cap."""


def connect(url: str) -> Redis:
    """A Redis client with a pool of its own; opens no connection yet."""
    return Redis.from_url(
        url, socket_connect_timeout=2, socket_keepalive=True, health_check_interval=15
    )


def server_time(redis: Redis) -> float:
    """Redis' clock (seconds since the epoch), by which all machines go."""
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def open_queue(name: str, redis: Redis, job_class: type[RqJob] = RqJob) -> Queue:
    """The queue `name`, with the JSON serializer that every reader of it must use."""
    return Queue(name, connection=redis, serializer=JSONSerializer, job_class=job_class)


def enqueue(
    queue: Queue,
    transitions: Transitions,
    job: Job,
    *,
    most: int = -1,
    also: Callable[[Any], None] | None = None,
) -> int:
    """Write the record, whatever `also` adds to the pipeline, and the RQ job in one transaction.

    Either all of it is there afterwards or none. Returns how many jobs wait then. 0 where `most`
    jobs waited already; nothing is written then, and however many come at once, no more get in.
    Raises `redis.RedisError`.
    """
    with queue.connection.pipeline(transaction=True) as pipeline:
        # RQ comes first: it opens the transaction, and refuses a pipeline with commands in it.
        queue.enqueue_call(
            TASK,
            args=(job.id,),
            job_id=job.id,
            timeout=NO_TIMEOUT,
            result_ttl=0,
            failure_ttl=3600,
            description="generate",
            retry=Retry(max=RECOVERIES, enqueue_at_front=True),
            pipeline=pipeline,
        )
        transitions.create(job, pipeline)
        if also is not None:
            also(pipeline)
        # A transaction cannot ask how long the queue is, so a script runs its commands.
        commands = [command for command, _ in pipeline.command_stack]
    script = queue.connection.register_script(redis_keys.load_script("queue_enqueue"))
    keys = [key for _, key, *_ in commands]
    words = [word for name, _, *rest in commands for word in (len(rest) + 1, name, *rest)]
    waiting: Any = script(keys=[queue.key, *keys], args=[most, *words])
    return int(waiting)


def forget(queue: Queue, job_id: str) -> None:
    """Take a job whose record is final out of the queue, and delete what RQ keeps of it.

    The worker of a running one learns of it from the record. Raises `redis.RedisError`.
    """
    queue.connection.register_script(redis_keys.load_script("queue_remove"))(
        keys=[queue.key, RqJob.key_for(job_id), redis_keys.DEADLINES], args=[job_id]
    )


def list_key(queue_name: str) -> str:
    """Redis list of waiting job ids, the next one first (RQ's own key)."""
    return f"rq:queue:{queue_name}"
