"""Jobs that were accepted run and end on a Redis that takes no more writes."""

import threading

import pytest
from redis import Redis, ResponseError

from service.core import redis_keys
from service.core.job import JobError, JobMetrics, Status
from service.core.queue import open_queue
from service.core.redis_server import is_full
from service.core.transitions import Claim, Transitions
from service.core.worker_registry import is_served, register
from tests import redis_kinds
from tests.running import until
from tests.worker_info import worker_info
from tests.workers.fake_engine import FakeEngine, result
from workers.consumer import Consumer
from workers.leases import Leases
from workers.task import generate


@pytest.fixture
def redis(tmp_path):
    """A Redis of its own, which a test may fill."""
    with redis_kinds.server(tmp_path / "redis") as port, Redis(port=port) as client:
        yield client


def test_every_move_of_an_accepted_job_works(
    add_job, redis: Redis, queue, read, transitions: Transitions, leases: Leases
) -> None:
    jobs = [add_job() for _ in range(5)]
    webhook = {"webhook": "https://example.org/", "webhook_events": "start completed"}
    redis.hset(redis_keys.job(jobs[0].id), mapping=webhook)
    redis_kinds.fill(redis)
    with pytest.raises(ResponseError) as refused:
        add_job()
    assert is_full(refused.value)
    held = []
    for job in jobs:
        assert leases.dequeue(1) == job.id
        held.append(leases.take(job.id))
    leases.renew(held)
    done, failed, canceled, returned, _ = (Claim(job.id, f"token-{job.id}") for job in jobs)
    for claim in (done, failed, canceled, returned):
        assert transitions.claim(claim, "w")
    assert transitions.succeed(done, (), JobMetrics(), 4)
    error = JobError(type="urn:x", title="x", detail="x")
    assert transitions.fail(failed, error, JobMetrics())
    assert transitions.cancel(canceled.job_id) is Status.CANCELED
    assert transitions.hand_back(returned)
    for lease in held[:3]:
        leases.end(lease)
    leases.requeue(held[3])
    redis.config_set("maxmemory", 0)
    redis.zincrby("rq:wip:test", -60, held[4].execution.composite_key)
    redis_kinds.fill(redis)
    assert leases.return_expired() == [jobs[4].id]
    assert set(queue.job_ids) == {jobs[3].id, jobs[4].id}
    assert [read(job.id).status.value for job in jobs[:4]] == [
        "succeeded",
        "failed",
        "canceled",
        "queued",
    ]
    told = [f"{jobs[0].id}:start".encode(), jobs[0].id.encode()]
    assert redis.zrange(redis_keys.OUTBOX, 0, -1) == told


def test_a_worker_stays_registered(redis: Redis) -> None:
    redis_kinds.fill(redis)
    register(redis, worker_info(models=("tiny",)))
    assert is_served(redis, "tiny")


def test_a_worker_works_off_what_waits(
    add_job, redis: Redis, read, shared, transitions: Transitions, engine: FakeEngine
) -> None:
    engine.answer = lambda _: result()
    jobs = [add_job() for _ in range(4)]
    redis_kinds.fill(redis)
    consumer = Consumer(
        redis,
        "test",
        name="one",
        task=lambda job_id, abort: generate(job_id, shared, abort=abort),
        accepting=lambda: True,
        transitions=transitions,
        slots=2,
        lease_seconds=6,
    )
    consumer.heartbeat()
    thread = threading.Thread(target=consumer.work_until_stopped, args=(30,))
    thread.start()
    try:
        until(lambda: all(read(job.id).status is Status.SUCCEEDED for job in jobs))
    finally:
        consumer.stop()
        thread.join(30)
    assert open_queue("test", redis).job_ids == []
