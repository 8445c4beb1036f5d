"""A job whose model this worker does not know is not lost while a new `models.yaml` rolls out."""

import json
import threading
import time

import pytest
from redis import Redis

from service.core import redis_keys
from service.core.errors import UnservableRequest
from service.core.job import EventName, Status
from service.core.queue import server_time
from service.core.transitions import Claim
from service.core.worker_registry import register
from tests.worker_info import worker_info
from tests.workers.fake_engine import FakeEngine
from workers import task
from workers.task import TaskOutcome, generate


@pytest.fixture
def run(shared, monkeypatch):
    """One attempt of this worker at a job."""
    monkeypatch.setattr(task, "REQUEUE_PAUSE_SECONDS", 0.1)
    return lambda job: generate(job.id, shared, abort=threading.Event())


@pytest.fixture
def unknown(add_job, redis: Redis, engine: FakeEngine):
    """A job for a model that came after this worker, with a minute to wait for a worker."""
    engine.answer = lambda job: UnservableRequest(f"{job.request.model} is not served here")
    job = add_job(model="new")
    redis.hset(redis_keys.job(job.id), "deadline_at", time.time() + 60)
    return job


def start_once(transitions, job) -> None:
    """Let a worker begin with it and hand it back."""
    claim = Claim(job.id, "of another")
    assert transitions.claim(claim, "another")
    assert transitions.hand_back(claim)


def test_it_is_left_to_a_worker_that_may_come(
    read, redis: Redis, run, unknown, engine: FakeEngine
) -> None:
    began = time.monotonic()
    assert run(unknown) is TaskOutcome.NOT_ELIGIBLE
    assert time.monotonic() - began >= 0.1, "workers do not spin on it"
    job = read(unknown.id)
    assert (job.status, job.attempt, job.started_at) == (Status.QUEUED, 0, None)
    assert [one[b"event"] for _, one in redis.xrange(redis_keys.events(job.id))] == [
        EventName.STATUS.encode()
    ]
    assert engine.tickets == []


def test_it_expires_as_any_job_that_found_no_worker_in_time(
    read, redis: Redis, run, unknown
) -> None:
    redis.hset(redis_keys.job(unknown.id), "deadline_at", time.time() - 1)
    assert run(unknown) is TaskOutcome.ENDED
    assert read(unknown.id).status is Status.EXPIRED


@pytest.mark.parametrize("model", ["new", "another"])
def test_started_once_it_waits_after_its_deadline_only_where_a_worker_serves_it(
    read, redis: Redis, run, unknown, transitions, model: str
) -> None:
    start_once(transitions, unknown)
    redis.hset(redis_keys.job(unknown.id), "deadline_at", time.time() - 1)
    register(redis, worker_info(models=(model,)))
    if model == "new":
        assert run(unknown) is TaskOutcome.NOT_ELIGIBLE
        assert read(unknown.id).status is Status.QUEUED
    else:
        assert run(unknown) is TaskOutcome.ENDED
        assert read(unknown.id).error.type == "urn:imageprompt:error:unservable-request"


def test_it_does_not_wait_for_ever_for_an_adapter_that_is_served_no_more(
    read, redis: Redis, run, unknown, transitions, engine: FakeEngine
) -> None:
    engine.models.add("new")
    engine.lost_adapters.add(unknown.request.adapter)
    start_once(transitions, unknown)
    assert run(unknown) is TaskOutcome.NOT_ELIGIBLE, "until its deadline another worker may have it"
    redis.hset(redis_keys.job(unknown.id), "deadline_at", time.time() - 1)
    register(redis, worker_info(name="this", models=("new",)))
    assert run(unknown) is TaskOutcome.ENDED
    assert read(unknown.id).error.type == "urn:imageprompt:error:unservable-request"


def test_it_is_over_when_it_is_canceled(run, unknown, transitions) -> None:
    transitions.cancel(unknown.id)
    assert run(unknown) is TaskOutcome.ENDED


@pytest.fixture
def newer(add_job, redis: Redis):
    """A job of a release to come: a field more, and a sampler that this worker does not have."""
    job = add_job()
    name = redis_keys.job(job.id)
    request = json.loads(redis.hget(name, "request")) | {"scheduler": "of-tomorrow", "more": 1}
    redis.hset(
        name, mapping={"request": json.dumps(request), "deadline_at": server_time(redis) + 60}
    )
    return job


def test_a_record_that_it_cannot_read_is_left_to_a_newer_worker(
    redis: Redis, run, newer, engine: FakeEngine
) -> None:
    before = redis.hgetall(redis_keys.job(newer.id))
    assert run(newer) is TaskOutcome.NOT_ELIGIBLE
    assert redis.hgetall(redis_keys.job(newer.id)) == before, "no attempt is counted"
    assert engine.tickets == []


def test_a_record_that_nobody_read_in_time_ends(redis: Redis, run, newer, transitions) -> None:
    start_once(transitions, newer)
    redis.hset(redis_keys.job(newer.id), "deadline_at", server_time(redis) - 1)
    assert run(newer) is TaskOutcome.ENDED
    status, error = redis.hmget(redis_keys.job(newer.id), "status", "error")
    assert status == b"failed"
    assert json.loads(error)["type"] == "urn:imageprompt:error:unservable-request"
