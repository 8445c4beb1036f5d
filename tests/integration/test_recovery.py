"""Workers die, hang, pause and are replaced, Redis dies; no job is lost, mixed up or done twice."""

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from service.cli.processes import RedisServer
from tests.running import Running, until
from tests.stack import FINAL, Service, metric, nothing_left, picture, pixels

TROUBLED = "tests.integration.troubled_worker"
LONG = {"steps": 80}


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that a test may kill."""
    server = RedisServer(tmp_path_factory.mktemp("own-redis"), fsync="always")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def service(make_service: Callable[..., Service], own_redis: RedisServer) -> Iterator[Service]:
    """An API and its Redis; each test takes the workers it needs."""
    service = make_service(
        redis_url=own_redis.url,
        worker_slots=4,
        lease_seconds=4,
        drain_seconds=0.5,
        step_timeout_seconds=6,
    )
    service.start_api()
    yield service
    service.stop()


@pytest.fixture(autouse=True)
def redis_is_there(request: pytest.FixtureRequest, own_redis: RedisServer) -> None:
    """Start Redis, but for the test that comes before it."""
    if "not_there_yet" not in request.node.name and not own_redis.is_running:
        own_redis.start()


def workers(service: Service, count: int) -> list[Running]:
    """`count` live workers: those of the tests before, and new ones for the dead."""
    service.workers = [one for one in service.workers if one.process.poll() is None]
    for _ in range(count - len(service.workers)):
        service.add_worker(wait=False, module=TROUBLED)
    service.wait_ready()
    return service.workers[:count]


def test_workers_wait_for_a_redis_that_is_not_there_yet(
    service: Service, own_redis: RedisServer
) -> None:
    for _ in range(3):
        service.add_worker(wait=False, module=TROUBLED)
    for worker in service.workers:
        until(lambda worker=worker: "no answer; retrying" in worker.log.read_text(), seconds=240)
    assert service.workers[0].stop() == 0
    assert service.client.get("/healthz/ready").status_code == 503
    own_redis.start()
    workers(service, 2)


def test_jobs_of_a_killed_worker_are_finished_by_another(service: Service) -> None:
    victim, other = workers(service, 2)
    ids = [service.submit(image=picture(n), seed=n, **LONG) for n in range(8)]
    until(  # not until all are at work at once: the first may have ended by then
        lambda: (
            metric(victim, "imageprompt_worker_running_jobs")
            or all(service.job(job)["status"] in FINAL for job in ids)
        )
    )
    victim.kill()
    jobs = [service.succeeded(job_id) for job_id in ids]
    assert [job["images"][0]["seed"] for job in jobs] == list(range(8))
    again = service.succeeded(service.submit(image=picture(0), seed=0, **LONG))
    mine, theirs = (pixels(service.image(job)) for job in (again["id"], ids[0]))
    assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) <= 1
    until(lambda: nothing_left(service))
    assert other.process.poll() is None


def test_accepted_jobs_survive_a_killed_redis(service: Service, own_redis: RedisServer) -> None:
    workers(service, 1)
    ids = [service.submit(image=picture(n), seed=n, **LONG) for n in range(6)]
    service.wait_step(ids[0])
    own_redis.process.kill()
    own_redis.process.wait()
    refused = service.post()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert service.client.get("/healthz/ready").status_code == 503
    assert service.client.get("/healthz/live").status_code == 200
    own_redis.start()
    for n, job_id in enumerate(ids):
        assert service.succeeded(job_id)["images"][0]["seed"] == n
    service.wait_ready()
    service.succeeded(service.submit())


def test_paused_worker_cannot_overwrite_what_another_has_done(service: Service) -> None:
    (first,) = workers(service, 1)
    job_id = service.submit(seed=3, **LONG)
    service.wait_step(job_id)
    first.process.send_signal(signal.SIGSTOP)
    service.add_worker(module=TROUBLED)
    done = service.succeeded(job_id)
    before = service.image(job_id)
    first.process.send_signal(signal.SIGCONT)
    first.wait("/healthz/ready")
    for seed in range(8):
        service.submit(seed=seed)
    until(lambda: nothing_left(service))
    assert service.job(job_id) == done
    assert service.image(job_id) == before


def test_stopped_worker_hands_its_jobs_back_and_loses_none(service: Service) -> None:
    first, _ = workers(service, 2)
    ids = [service.submit(image=picture(n), seed=n, **LONG) for n in range(10)]
    service.wait_step(ids[0])
    assert first.stop() == 0
    for job_id in ids:
        service.succeeded(job_id)
    until(lambda: nothing_left(service))


def test_hung_worker_ends_itself_and_its_jobs_are_done_by_its_successor(service: Service) -> None:
    (first,) = workers(service, 1)
    stuck = service.submit(prompt="hang", steps=20)
    beside = service.submit(image=picture(1), seed=1, **LONG)
    assert until(first.process.poll) == 70
    assert service.job(stuck)["status"] == "processing"
    successor = service.add_worker(module="workers")  # on which nothing hangs
    for job_id in (stuck, beside):
        service.succeeded(job_id)
    until(lambda: nothing_left(service))
    assert successor.stop() == 0


def test_job_that_kills_its_workers_is_given_up_and_the_others_go_on(service: Service) -> None:
    workers(service, 2)
    innocents = [service.submit(image=picture(n), seed=n, **LONG) for n in range(2)]
    poison = service.submit(prompt="poison", steps=20)
    innocents += [service.submit(image=picture(n), seed=n, **LONG) for n in range(2, 4)]
    seen: set[int] = set()
    while service.job(poison)["status"] in ("queued", "processing"):
        dead = [one for one in service.workers if one.process.poll() is not None]
        for one in dead:
            if one.process.pid not in seen:
                seen.add(one.process.pid)
                assert len(seen) <= 3, "the poison was never given up"
                service.add_worker(wait=False, module=TROUBLED)
        time.sleep(0.2)
    error = service.job(poison)["error"]
    assert error["type"] == "urn:imageprompt:error:attempts-exhausted"
    for job_id in innocents:
        service.succeeded(job_id)
    service.succeeded(service.submit())
