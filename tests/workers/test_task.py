"""The life of one job, with an engine whose every move the test makes."""

import base64
import gc
import io
import json
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from PIL import Image

from service.core import redis_keys
from service.core.errors import EngineFault, InputLost, NotFinite
from service.core.job import Status
from service.core.metrics import STAGES
from service.core.storage import StorageError
from service.core.transitions import Claim
from tests.running import until
from tests.workers.fake_engine import FakeEngine, result
from workers.engine.api import EngineDied
from workers.task import TaskOutcome, generate


@pytest.fixture
def start(shared):
    """Run a job on a thread, as a slot of a worker does."""
    abort = threading.Event()
    shared.progress.start()
    with ThreadPoolExecutor(8) as pool:

        def run(job_id: str) -> Future[TaskOutcome]:
            return pool.submit(generate, job_id, shared, abort=abort)

        run.abort = abort
        yield run
        abort.set()
    shared.progress.close()
    shared.progress.join(30)


def test_pictures_are_stored_before_the_job_has_succeeded(
    add_job, read, storage, shared, engine: FakeEngine, start
) -> None:
    engine.answer = lambda _: result(count=2)
    job = add_job(num_images=2)
    assert start(job.id).result(30) is TaskOutcome.ENDED
    done = read(job.id)
    assert done.status is Status.SUCCEEDED
    assert [image.seed for image in done.images] == [7, 8]
    assert all(storage.get(image.key) for image in done.images)
    assert done.metrics.max_batch == 4
    assert done.metrics.image_embedding_cache == "miss"


def test_progress_reaches_record_and_events(
    add_job, read, redis, engine: FakeEngine, start
) -> None:
    job = add_job()
    running = start(job.id)
    ticket = until(lambda: engine.tickets and engine.tickets[0])
    for step in (1, 2, 3):
        ticket.listener.on_step(step, 4)
    until(lambda: read(job.id).step == 3)
    ticket.finish(result())
    running.result(30)
    names = [fields[b"event"] for _, fields in redis.xrange(redis_keys.events(job.id))]
    assert names == [b"status", b"status", *[b"progress"] * 3, b"status", b"done"]


def test_preview_is_sent_as_a_small_jpeg(add_job, redis, engine: FakeEngine, start) -> None:
    job = add_job()
    running = start(job.id)
    ticket = until(lambda: engine.tickets and engine.tickets[0])
    ticket.listener.on_preview(2, Image.new("RGB", (16, 16), "red"))

    def preview() -> bytes | None:
        events = [fields for _, fields in redis.xrange(redis_keys.events(job.id))]
        return next((one[b"data"] for one in events if one[b"event"] == b"preview"), None)

    content = json.loads(until(preview))
    assert (content["step"], content["content_type"]) == (2, "image/jpeg")
    assert Image.open(io.BytesIO(base64.b64decode(content["data"]))).size == (16, 16)
    ticket.finish(result())
    running.result(30)


def test_canceled_job_leaves_the_engine_and_stores_nothing(
    add_job, read, api_transitions, results, ends, engine: FakeEngine, start
) -> None:
    job = add_job()
    running = start(job.id)
    ticket = until(lambda: engine.tickets and engine.tickets[0])
    assert api_transitions.cancel(job.id) is Status.CANCELED
    assert ticket.canceled.wait(30)
    assert running.result(30) is TaskOutcome.ENDED
    assert read(job.id).status is Status.CANCELED
    assert results(job.id) == []
    assert ends() == {}, "the API ended it, and counts it"


def test_job_that_another_worker_took_is_not_overwritten(
    add_job, read, transitions, results, shared, engine: FakeEngine, start
) -> None:
    shared.progress.close()  # it would stop the job at once; here its result comes first
    shared.progress.join(30)
    job = add_job()
    running = start(job.id)
    ticket = until(lambda: engine.tickets and engine.tickets[0])
    assert transitions.claim(Claim(job.id, "other"), "other")
    ticket.finish(result())
    assert running.result(30) is TaskOutcome.LOST
    now = read(job.id)
    assert (now.status, now.worker, now.images) == (Status.PROCESSING, "other", ())
    assert results(job.id) == []


def test_ended_job_is_freed_at_once(add_job, engine: FakeEngine, start) -> None:
    """Pictures do not pile up until the collector of cycles comes by."""
    engine.answer = lambda _: result()
    gc.disable()
    try:
        start(add_job().id).result(30)
        ticket = weakref.ref(engine.tickets.pop())
        until(lambda: ticket() is None, seconds=60)
    finally:
        gc.enable()


def test_failure_of_the_job_ends_it_with_its_reason(
    add_job, read, engine: FakeEngine, start
) -> None:
    engine.answer = lambda _: NotFinite("The latents are not finite.")
    job = add_job()
    assert start(job.id).result(30) is TaskOutcome.ENDED
    error = read(job.id).error
    assert error.type == "urn:imageprompt:error:not-finite"
    assert error.detail == "The latents are not finite."


def test_engine_fault_is_tried_again_until_the_cap(
    add_job, read, engine: FakeEngine, start
) -> None:
    engine.answer = lambda _: EngineFault("Something broke.")
    job = add_job()
    outcomes = [start(job.id).result(30) for _ in range(3)]
    assert outcomes == [TaskOutcome.RETURNED, TaskOutcome.RETURNED, TaskOutcome.ENDED]
    assert read(job.id).status is Status.FAILED


def test_text_of_an_unexpected_exception_stays_in_the_log(
    add_job, read, engine: FakeEngine, start
) -> None:
    engine.answer = lambda _: RuntimeError("/secret/path")
    job = add_job()
    for _ in range(3):
        start(job.id).result(30)
    error = read(job.id).error
    assert error.type == "urn:imageprompt:error:engine-fault"
    assert "secret" not in error.model_dump_json()


def test_result_waits_for_a_storage_that_is_away(
    add_job, read, shared, storage, monkeypatch, engine: FakeEngine, start
) -> None:
    job = add_job()
    put, refusals = storage.put, [StorageError("away")] * 3

    def sometimes(*args: object) -> None:
        if refusals:
            raise refusals.pop()
        put(*args)

    monkeypatch.setattr(storage, "put", sometimes)
    engine.answer = lambda _: result()
    assert start(job.id).result(30) is TaskOutcome.ENDED
    assert refusals == []
    assert read(job.id).status is Status.SUCCEEDED


def test_lost_upload_ends_the_job(add_job, read, storage, engine: FakeEngine, start) -> None:
    job = add_job()
    storage.delete(job.request.images[0].key)

    def load(engine_job):
        try:
            engine_job.read(engine_job.request.images[0].key)
        except InputLost as error:  # as the engine does
            return error

    engine.answer = load
    start(job.id).result(30)
    assert read(job.id).error.type == "urn:imageprompt:error:input-lost"


def test_running_job_is_handed_back_without_counting_the_attempt(
    add_job, read, engine: FakeEngine, start
) -> None:
    job = add_job()
    running = start(job.id)
    until(lambda: engine.tickets)
    start.abort.set()
    assert running.result(30) is TaskOutcome.RETURNED
    now = read(job.id)
    assert (now.status, now.attempt, now.worker) == (Status.QUEUED, 0, None)


def test_job_that_came_to_a_dead_engine_is_handed_back_without_counting_the_attempt(
    add_job, read, engine: FakeEngine, start
) -> None:
    engine.answer = lambda _: EngineDied()
    job = add_job()
    for _ in range(5):
        assert start(job.id).result(30) is TaskOutcome.RETURNED
    now = read(job.id)
    assert (now.status, now.attempt, now.worker) == (Status.QUEUED, 0, None)


def test_job_that_saw_two_workers_die_runs_alone(
    add_job, transitions, engine: FakeEngine, start
) -> None:
    suspect, ordinary, late = add_job(), add_job(), add_job()
    for token in ("first", "second"):
        assert transitions.claim(Claim(suspect.id, token), "dead")
    together = start(ordinary.id)
    until(lambda: len(engine.tickets) == 1)
    alone = start(suspect.id)
    engine.tickets[0].finish(result())
    together.result(30)
    until(lambda: len(engine.tickets) == 2)
    assert engine.tickets[1].job.id == suspect.id
    after = start(late.id)
    engine.tickets[1].finish(result())
    alone.result(30)
    until(lambda: len(engine.tickets) == 3)
    engine.tickets[2].finish(result())
    assert after.result(30) is TaskOutcome.ENDED


def test_stages_are_observed_of_jobs_that_went_through_all_of_them(
    add_job, metrics, ends, engine: FakeEngine, start
) -> None:
    for end in (result(), NotFinite("no number"), result()):
        engine.answer = lambda _, end=end: end
        start(add_job().id).result(30)
    assert ends() == {"succeeded": 2, "failed": 1}
    for stage in STAGES:
        labels = {"stage": stage}
        count = metrics.registry.get_sample_value("imageprompt_stage_seconds_count", labels)
        assert count == 2, stage


def test_job_started_too_often_is_given_up(
    add_job, read, transitions, ends, engine: FakeEngine, start
) -> None:
    job = add_job()
    for token in ("first", "second", "third"):
        assert transitions.claim(Claim(job.id, token), "dead")
    assert start(job.id).result(30) is TaskOutcome.ENDED
    assert engine.tickets == []
    assert read(job.id).error.type == "urn:imageprompt:error:attempts-exhausted"
    assert ends() == {"failed": 1}
