"""Workers die, hang, pause and are replaced; no job is lost, mixed up or written twice."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import redis_client, until
from tests.stack import Service, nothing_left, picture, pixels

TROUBLED = Path(__file__).with_name("troubled_worker.py")
LONG = {"steps": 100, "width": 128, "height": 128}


@pytest.fixture
def service(make_service: Callable[..., Service]):
    """A service whose processes end with the test."""
    made = []

    def make(workers: int = 1, script: Path | None = None, **settings: object) -> Service:
        service = make_service(**settings)
        made.append(service)
        return service.start(workers, script=script)

    yield make
    for one in made:
        one.stop()


def test_jobs_of_a_killed_worker_are_finished_by_another(service) -> None:
    running = service(workers=2, worker_slots=4)
    ids = [running.submit(image=picture(n), seed=n, **LONG) for n in range(8)]
    victim, other = running.workers
    until(lambda: all(running.job(job)["status"] == "processing" for job in ids))
    running.wait_step(ids[0])
    victim.kill()
    jobs = [running.succeeded(job_id) for job_id in ids]
    assert [job["images"][0]["seed"] for job in jobs] == list(range(8))
    again = running.succeeded(running.submit(image=picture(0), seed=0, **LONG))
    mine, theirs = (pixels(running.image(job)) for job in (again["id"], ids[0]))
    assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) <= 1
    until(lambda: nothing_left(running))
    assert other.process.poll() is None


def test_paused_worker_cannot_overwrite_what_another_has_done(service) -> None:
    running = service(workers=1)
    job_id = running.submit(seed=3, **LONG)
    running.wait_step(job_id)
    first = running.workers[0]
    first.process.send_signal(signal.SIGSTOP)
    running.add_worker()
    done = running.succeeded(job_id)
    before = running.image(job_id)
    first.process.send_signal(signal.SIGCONT)
    first.wait("/healthz/ready")
    other = running.submit(seed=4)
    running.succeeded(other)
    assert running.job(job_id) == {**done, "eta_seconds": None}
    assert running.image(job_id) == before
    until(lambda: nothing_left(running))


def test_stopped_worker_hands_its_jobs_back_and_loses_none(service) -> None:
    running = service(workers=1, drain_seconds=0.5)
    ids = [running.submit(image=picture(n), seed=n, **LONG, num_images=2) for n in range(10)]
    running.wait_step(ids[0])
    assert running.workers[0].stop() == 0
    running.add_worker(wait=False)
    for job_id in ids:
        running.succeeded(job_id)
    until(lambda: nothing_left(running))


def test_job_that_kills_its_workers_is_given_up_and_the_others_go_on(service) -> None:
    running = service(workers=1, script=TROUBLED)
    innocents = [running.submit(image=picture(n), seed=n, **LONG) for n in range(2)]
    poison = running.submit(prompt="poison", steps=20)
    innocents += [running.submit(image=picture(n), seed=n, **LONG) for n in range(2, 4)]
    while running.job(poison)["status"] in ("queued", "processing"):
        worker = running.workers[-1]
        if worker.process.poll() is not None:
            assert len(running.workers) < 6, "the poison was never given up"
            running.add_worker(wait=False, script=TROUBLED)
    error = running.job(poison)["error"]
    assert error["type"] == "urn:imageprompt:error:attempts-exhausted"
    for job_id in innocents:
        running.succeeded(job_id)
    running.succeeded(running.submit())


def test_hung_worker_ends_itself_and_its_jobs_are_done_by_its_successor(service) -> None:
    running = service(workers=1, script=TROUBLED, step_timeout_seconds=2)
    stuck = running.submit(prompt="hang", steps=20)
    assert until(running.workers[0].process.poll, seconds=60) == 70
    assert running.job(stuck)["status"] == "processing"
    running.add_worker()
    running.succeeded(stuck)


def test_planted_job_is_refused_while_honest_ones_run(service, tmp_path) -> None:
    running = service(workers=1)
    trap = tmp_path / "trap"
    redis = redis_client(str(running.settings["redis_url"]))
    redis.hset(
        "rq:job:planted",
        mapping={
            "data": f'["os.system", null, ["touch {trap}"], {{}}]',
            "status": "queued",
            "origin": "imageprompt",
        },
    )
    redis.rpush("rq:queue:imageprompt", "planted")
    running.succeeded(running.submit())
    until(lambda: not redis.exists("rq:job:planted"))
    assert not trap.exists()
