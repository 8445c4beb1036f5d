"""The loop that takes jobs: slots, rejected jobs, shutdown, and outages of Redis."""

import os
import pickle
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from redis import Redis
from rq import Callback, Queue, Worker
from rq.serializers import JSONSerializer

from service.cli.processes import RedisServer
from service.core.errors import EngineFault
from service.core.job import Status
from service.core.queue import connect, open_queue
from service.core.transitions import Transitions
from tests.running import until
from tests.workers.fake_engine import FakeEngine
from workers.consumer import Consumer
from workers.engine.api import EngineDied, EngineJob
from workers.task import TaskOutcome, generate


class Task:
    """Stands in for `generate`: holds every job until the test lets it end."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.end = threading.Event()

    def __call__(self, job_id: str, abort: threading.Event) -> TaskOutcome:
        self.started.append(job_id)
        while not self.end.wait(0.01):
            if abort.is_set():
                return TaskOutcome.RETURNED
        return TaskOutcome.ENDED


@pytest.fixture
def task() -> Task:
    return Task()


@pytest.fixture
def work(redis_url: str, transitions: Transitions, task: Task):
    """Start a consumer on a thread."""
    consumers, clients = [], ExitStack()

    def start(
        *,
        slots: int = 2,
        url: str = redis_url,
        drain_seconds: float = 30,
        task: Callable[[str, threading.Event], TaskOutcome] = task,
        accepting: Callable[[], bool] = lambda: True,
    ) -> Consumer:
        consumer = Consumer(
            clients.enter_context(connect(url)),
            "test",
            name=f"consumer-{len(consumers)}",
            task=task,
            accepting=accepting,
            transitions=transitions,
            slots=slots,
            lease_seconds=6,
        )
        consumer.heartbeat()
        thread = threading.Thread(target=consumer.work_until_stopped, args=(drain_seconds,))
        thread.start()
        consumer.ended = thread.join
        consumers.append(consumer)
        return consumer

    yield start
    for consumer in consumers:
        consumer.stop()
        consumer.stop()
        consumer.ended(30)
    clients.close()


def test_worker_holds_no_more_jobs_than_it_has_slots(add_job, queue, work, task) -> None:
    jobs = [add_job() for _ in range(5)]
    work(slots=2)
    until(lambda: len(task.started) == 2)
    time.sleep(0.3)
    assert queue.job_ids == [job.id for job in jobs[2:]]
    task.end.set()
    until(lambda: len(task.started) == 5)


def test_rq_own_tools_see_the_worker_and_its_jobs(add_job, redis: Redis, work, task) -> None:
    job = add_job()
    consumer = work()
    until(lambda: task.started)
    consumer.heartbeat()
    (seen,) = Worker.all(connection=redis, serializer=JSONSerializer)
    assert (seen.name, seen.get_state()) == (consumer.name, "busy")
    assert seen.get_current_job_id() == job.id
    consumer.stop()
    consumer.stop()
    consumer.ended(30)
    assert Worker.all(connection=redis, serializer=JSONSerializer) == []


def test_names_of_killed_workers_do_not_stay(redis: Redis, work) -> None:
    consumer = work()
    redis.sadd("rq:workers", "rq:worker:killed")
    redis.sadd("rq:workers:test", "rq:worker:killed")
    work()
    assert b"rq:worker:killed" not in redis.sunion("rq:workers", "rq:workers:test")
    assert consumer.key.encode() in redis.smembers("rq:workers")


def test_ended_jobs_leave_nothing_in_rq(add_job, redis: Redis, work, task) -> None:
    task.end.set()
    job = add_job()
    consumer = work()
    until(lambda: task.started == [job.id] and not consumer.held)
    assert [key for key in redis.keys("rq:*") if job.id.encode() in key] == []


def test_stop_lets_running_jobs_finish_and_leaves_the_others(add_job, queue, work, task) -> None:
    jobs = [add_job() for _ in range(3)]
    consumer = work(slots=2)
    until(lambda: len(task.started) == 2)
    consumer.stop()
    threading.Timer(0.3, task.end.set).start()
    consumer.ended(30)
    assert queue.job_ids == [jobs[2].id]
    assert set(task.started) == {jobs[0].id, jobs[1].id}, "each on a thread, in any order"


def test_jobs_that_outlast_the_grace_go_back_to_the_front(add_job, queue, work, task) -> None:
    first, second = add_job(), add_job()
    consumer = work(slots=1, drain_seconds=0.2)
    until(lambda: task.started == [first.id])
    consumer.stop()
    consumer.ended(30)
    assert queue.job_ids == [first.id, second.id]


def test_job_of_another_worker_lets_those_behind_it_have_their_turn(
    add_job, queue, work, task
) -> None:
    other, mine = add_job(), add_job()

    def run(job_id: str, abort: threading.Event) -> TaskOutcome:
        return TaskOutcome.NOT_ELIGIBLE if job_id == other.id else task(job_id, abort)

    work(slots=1, task=run)
    until(lambda: task.started == [mine.id])
    assert queue.job_ids == [other.id]


def test_worker_whose_engine_has_died_fails_no_job_and_leaves_the_others(
    add_job, queue, read, work, shared, engine: FakeEngine
) -> None:
    died = threading.Event()
    first = threading.Lock()

    def die(_job: EngineJob) -> Exception:
        if not first.acquire(blocking=False):
            return EngineDied()
        died.set()
        return EngineFault("The engine has lost its device.")

    engine.answer = die
    jobs = [add_job() for _ in range(6)]
    consumer = work(
        task=lambda job_id, abort: generate(job_id, shared, abort=abort),
        accepting=lambda: not died.is_set(),
    )
    ids = {job.id for job in jobs}
    until(lambda: engine.tickets and not consumer.held and set(queue.job_ids) == ids)
    time.sleep(0.3)
    assert sorted(queue.job_ids) == sorted(ids)
    now = [read(job.id) for job in jobs]
    assert {one.status for one in now} == {Status.QUEUED}
    assert sum(one.attempt for one in now) == 1, "of the one that was running"


def test_job_dequeued_while_the_engine_dies_goes_back(add_job, queue, work, task) -> None:
    asked: list[int] = []

    def accepting() -> bool:
        asked.append(1)
        return len(asked) == 1  # before the first dequeue

    work(accepting=accepting)
    until(lambda: asked)
    job = add_job()
    until(lambda: len(asked) > 2)
    assert (queue.job_ids, task.started) == ([job.id], [])


class Planted:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _refused(read, redis: Redis, job_id: str) -> bool:
    return read(job_id).status is Status.FAILED and not redis.exists(f"rq:job:{job_id}")


def test_planted_pickle_is_never_loaded(add_job, read, redis: Redis, work, task, tmp_path) -> None:
    trap = tmp_path / "trap"
    job, honest = add_job(), add_job()
    payload = pickle.dumps(Planted(str(trap)))
    for field in ("data", "meta", "result"):
        redis.hset(
            f"rq:job:{job.id}", field, zlib.compress(payload) if field == "data" else payload
        )
    task.end.set()
    work()
    until(lambda: task.started == [honest.id])
    until(lambda: _refused(read, redis, job.id))
    assert not trap.exists()


@pytest.mark.parametrize("name", ["os.system", "workers.task.generate_other"])
def test_other_function_is_never_run(
    add_job, read, redis: Redis, work, task, tmp_path, name
) -> None:
    trap = tmp_path / "trap"
    job, honest = add_job(), add_job()
    data = zlib.compress(f'["{name}", null, ["touch {trap}"], {{}}]'.encode())
    redis.hset(f"rq:job:{job.id}", "data", data)
    task.end.set()
    work()
    until(lambda: task.started == [honest.id])
    until(lambda: _refused(read, redis, job.id))
    assert not trap.exists()


def test_planted_callback_is_never_called(add_job, read, redis: Redis, work, task) -> None:
    job, honest = add_job(), add_job()
    redis.hset(f"rq:job:{job.id}", "failure_callback_name", "os.abort")
    task.end.set()
    work()
    until(lambda: task.started == [honest.id])
    until(lambda: _refused(read, redis, job.id))


def test_callback_planted_while_a_job_runs_is_not_called_when_its_lease_ends(
    add_job, redis: Redis, queue: Queue, work, task
) -> None:
    job = add_job()
    consumer = work(slots=1)
    until(lambda: task.started == [job.id])
    redis.hset(f"rq:job:{job.id}", "failure_callback_name", "os.abort")
    redis.zadd("rq:wip:test", {redis.zrange("rq:wip:test", 0, -1)[0]: 1})
    assert consumer.leases.return_expired() == [job.id]
    assert queue.job_ids == [job.id]


def test_malformed_jobs_do_not_stop_the_queue(add_job, redis: Redis, work, task) -> None:
    redis.hset("rq:job:bad", mapping={"data": b"x", "status": "no such status"})
    redis.rpush("rq:queue:test", "bad", "gone", b"\xff")
    job = add_job()
    task.end.set()
    work(slots=1)
    until(lambda: task.started == [job.id])
    until(lambda: redis.llen("rq:queue:test:intermediate") == 0)


def test_foreign_rq_job_with_callback_objects_is_refused(
    redis: Redis, queue: Queue, work, task
) -> None:
    foreign = queue.enqueue("os.getcwd", on_success=Callback("os.getcwd"))
    work()
    until(lambda: not redis.exists(f"rq:job:{foreign.id}"))
    assert task.started == []


def test_rejected_job_is_counted_as_failed_once(add_job, read, work, ends) -> None:
    consumer = work(accepting=lambda: False)
    job = add_job()
    consumer.reject(job.id)
    consumer.reject(job.id)
    assert read(job.id).status is Status.FAILED
    assert ends() == {"failed": 1}


def test_worker_takes_jobs_again_after_redis_was_killed(tmp_path, work, task, add_job) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    redis = connect(server.url)
    try:
        consumer = work(url=server.url)
        until(lambda: redis.exists(consumer.key))
        server.process.kill()
        server.process.wait()
        time.sleep(1)
        server.start()
        queue = open_queue("test", redis)
        job = queue.enqueue("workers.task.generate", args=("the-id",), job_id="the-id")
        task.end.set()
        until(lambda: task.started == [job.id])
    finally:
        redis.close()
        server.stop()
