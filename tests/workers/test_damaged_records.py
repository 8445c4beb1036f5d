"""A key that a worker cannot read costs one job: no lease is lost, and no slot is held for ever."""

import threading

import pytest
from redis import Redis
from rq.job import Job as RqJob

from service.core import redis_keys, worker_registry
from service.core.job import Status
from service.core.transitions import Claim
from service.core.worker_registry import WorkerInfo
from tests.worker_info import worker_info
from tests.workers.fake_engine import result
from workers.embedding_store import RedisEmbeddingStore
from workers.task import TaskOutcome, generate


def spoil(redis: Redis, key: str) -> None:
    """Replace a key by one of a type that this service writes nowhere."""
    redis.delete(key)
    redis.pfadd(key, "x")


def test_expired_leases_come_back_beside_one_of_another_type(
    add_job, redis: Redis, queue, leases, later
) -> None:
    jobs = [add_job() for _ in range(3)]
    for _ in jobs:
        assert leases.take(leases.dequeue(1))
    spoil(redis, RqJob.key_for(jobs[1].id))
    later(7)
    leases.return_expired()
    assert set(queue.job_ids) >= {jobs[0].id, jobs[2].id}
    assert redis.zcard("rq:wip:test") == 0


@pytest.mark.parametrize("move", ["take", "undo_dequeue"])
def test_no_dequeued_id_is_lost_where_its_record_is_damaged(
    add_job, redis: Redis, queue, leases, move: str
) -> None:
    job = add_job()
    assert leases.dequeue(1) == job.id
    spoil(redis, RqJob.key_for(job.id))
    getattr(leases, move)(job.id)
    left = queue.job_ids + [
        name.split(b":")[0].decode() for name in redis.zrange("rq:wip:test", 0, -1)
    ]
    assert left == [job.id]


@pytest.mark.parametrize("key", ["rq:wip:test", "rq:queue:test:intermediate"])
def test_leases_go_on_after_a_registry_was_damaged(add_job, redis: Redis, leases, key: str) -> None:
    job = add_job()
    leases.dequeue(1)
    spoil(redis, key)
    leases.take(job.id)
    leases.undo_dequeue(job.id)
    other = add_job()
    assert other.id in (leases.dequeue(1), leases.dequeue(1))
    assert leases.take(other.id)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"attempt": "x"}, Status.SUCCEEDED),
        ({"attempt": str(2**63 - 1)}, Status.SUCCEEDED),
        ({"deadline_at": "x"}, Status.FAILED),
        ({"deadline_at": "inf"}, Status.FAILED),
        ({"status": "of-tomorrow"}, Status.SUCCEEDED),
        ({"created_at": "inf"}, Status.FAILED),
        ({"request": '{"images": null}'}, Status.FAILED),
        ({"request": "[" * 100_000}, Status.FAILED),
        ({"events": ""}, Status.SUCCEEDED),
        ({"active": ""}, Status.SUCCEEDED),
        ({"deadlines": ""}, Status.SUCCEEDED),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_job_with_a_damaged_record_comes_to_its_end(
    add_job, redis: Redis, engine, shared, changes: dict[str, str], status: Status
) -> None:
    engine.answer = lambda _: result()
    job = add_job()
    others = {
        "events": redis_keys.events(job.id),
        "active": redis_keys.active_jobs("test"),
        "deadlines": redis_keys.DEADLINES,
    }
    for name, value in changes.items():
        if name in others:
            spoil(redis, others[name])
        else:
            redis.hset(redis_keys.job(job.id), name, value)
    assert generate(job.id, shared, abort=threading.Event()) is TaskOutcome.ENDED
    assert redis.hget(redis_keys.job(job.id), "status") == status.value.encode()


def test_a_record_of_another_type_holds_no_slot(add_job, redis: Redis, shared) -> None:
    job = add_job()
    spoil(redis, redis_keys.job(job.id))
    assert generate(job.id, shared, abort=threading.Event()) is TaskOutcome.ENDED


def test_progress_of_others_goes_on_and_a_lost_claim_is_seen(add_job, redis: Redis, shared) -> None:
    jobs = [add_job() for _ in range(2)]
    held = []
    for job in jobs:
        claim = Claim(job.id, job.id)
        assert shared.transitions.claim(claim, "tester")
        held.append(shared.progress.add(claim))
    spoil(redis, redis_keys.job(jobs[0].id))
    assert shared.progress._lost(held) == {held[0]}
    spoil(redis, redis_keys.events(jobs[1].id))
    held[1].steps.append((1, 2))
    assert shared.progress._write_steps(held) == set()
    assert redis.xlen(redis_keys.events(jobs[1].id)) == 1


@pytest.mark.parametrize("key", range(3))
@pytest.mark.parametrize("content", ["x", "-5", "9" * 400, None])
def test_the_embeddings_begin_anew_where_they_are_damaged(
    redis: Redis, key: int, content: str | None
) -> None:
    store = RedisEmbeddingStore(redis, keep_seconds=60, most_bytes=99)
    store.put("a", b"x")
    name = (
        redis_keys.EMBEDDINGS,
        redis_keys.EMBEDDINGS_LAST_USE,
        redis_keys.EMBEDDINGS_TOTAL_BYTES,
    )[key]
    if content is None:
        spoil(redis, name)
    else:
        redis.set(name, content)
    for _ in range(3):
        store.put("b", bytes(60))
    assert store.get("b") == bytes(60)


@pytest.mark.parametrize(
    "changes",
    [
        {"row_steps_per_second": float("inf")},
        {"row_steps_per_second": float("nan")},
        {"row_steps_per_second": 1e308},
        {"row_steps_per_second": -1.0},
        {"slots": -1},
        {"slots": 10**30},
    ],
    ids=str,
)
def test_an_absurd_entry_of_the_registry_is_skipped(changes: dict[str, object]) -> None:
    good = worker_info(name="good")
    text = (
        '{"name": "a"'
        + "".join(
            f', "{name}": {str(value).replace("inf", "Infinity").replace("nan", "NaN")}'
            for name, value in (
                good.model_dump() | {"models": "[]", "device": '"cpu"'} | changes
            ).items()
            if name not in ("name", "ready")
        )
        + ', "ready": true}'
    )
    assert WorkerInfo.model_validate_json(good.model_dump_json())
    assert worker_registry.read([text, good.model_dump_json()]) == [good]


def test_a_name_that_is_no_text_hides_no_worker(redis: Redis) -> None:
    worker_registry.register(redis, worker_info(name="good", models=("tiny",)))
    redis.zadd(redis_keys.WORKERS, {b"\xff\xfe": 9e9})
    assert worker_registry.is_served(redis, "tiny")
