"""The faults: each breaks one real process or connection at a random moment."""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import httpx
from redis import Redis

from tests import previous_release, redis_kinds
from tests.faults.load import Tally, send
from tests.faults.place import Place
from tests.proxy import Mode

JOBS = 12


def kill_worker(place: Place) -> Tally:
    """Kill one of two workers with -9 while both hold a batch; a new one is started."""
    place.service.wait_ready()
    sent = send(place.service, JOBS)
    place.moment()
    index = random.randrange(len(place.service.workers))
    place.service.workers[index].kill()
    place.replace_worker(index)
    return _judged(place, sent)


def stop_worker(place: Place) -> Tally:
    """SIGTERM one of two workers under load; it must exit with 0; a new one is started."""
    place.service.wait_ready()
    sent = send(place.service, JOBS)
    place.moment()
    index = random.randrange(len(place.service.workers))
    status = place.service.workers[index].stop()
    place.replace_worker(index)
    assert status == 0, f"the worker ended with {status}"
    return _judged(place, sent)


def kill_api(place: Place) -> Tally:
    """Kill the API with -9 while requests are taken in; those answered 202 count."""
    sent: dict[str, int] = {}
    client = threading.Thread(target=lambda: sent.update(send(place.service, 2 * JOBS)))
    client.start()
    place.moment(0.5)
    place.service.api.kill()
    client.join()
    place.service.start_api()
    return _judged(place, sent)


def kill_redis(place: Place) -> Tally:
    """Kill Redis with -9 while requests are taken in and jobs run; it is started again."""
    sent: dict[str, int] = {}
    client = threading.Thread(target=lambda: sent.update(send(place.service, JOBS)))
    client.start()
    place.moment()
    place.redis.process.kill()
    place.redis.process.wait()
    place.moment(2)
    place.redis.start()
    client.join()
    return _judged(place, sent)


def fail_storage(place: Place) -> Tally:
    """The storage answers 500 for three seconds."""
    return _storage(place, Mode.FAIL, 3)


def hang_storage(place: Place) -> Tally:
    """The storage hangs for thirty seconds."""
    return _storage(place, Mode.HANG, 30)


def _storage(place: Place, mode: Mode, seconds: float) -> Tally:
    sent = send(place.service, JOBS)
    place.moment()
    place.proxy.mode = mode
    time.sleep(seconds)
    place.proxy.mode = Mode.PASS
    return _judged(place, sent)


def skew_clock(place: Place) -> Tally:
    """A worker whose clock is 40 s behind or 2 h ahead takes part; then one with the right time."""
    offset = random.choice((-40, 7200))
    skewed = ("-m", "tests.integration.skewed", "workers")
    return _beside(place, {"CLOCK_OFFSET": offset}, skewed)


def roll_back_worker(place: Place) -> Tally:
    """A worker of the previous release takes part; then it is replaced by one of this release."""
    settings = {"PYTHONPATH": place.previous_release()}
    return _beside(place, settings, previous_release.WORKER)


def _beside(place: Place, settings: Mapping[str, object], command: Sequence[str]) -> Tally:
    usual = place.service.settings
    place.service.workers[0].stop()
    place.service.settings = {**usual, **settings}
    place.replace_worker(0, command=command)
    place.service.settings = usual
    place.service.wait_ready()
    tally = _judged(place, send(place.service, JOBS))
    sent = send(place.service, JOBS)
    place.moment()
    place.service.workers[-1].stop()
    place.replace_worker(len(place.service.workers) - 1)
    tally += _judged(place, sent)
    return tally


def fill_redis(place: Place) -> Tally:
    """Redis takes no more writes for five seconds: what was accepted ends, new jobs get 503."""
    place.service.wait_ready()
    sent = send(place.service, JOBS)
    place.moment()
    with Redis.from_url(place.redis.url) as redis:
        redis_kinds.fill(redis)
        try:
            refused = place.service.post()
            tally = place.judge.judge(place.service, sent)
            tally.wrong += refused.status_code != httpx.codes.SERVICE_UNAVAILABLE
        finally:
            redis.config_set("maxmemory", 0)
    return tally


def lose_redis(place: Place) -> Tally:
    """Redis loses everything while jobs run: they are gone, and new ones are served."""
    place.service.wait_ready()
    gone = send(place.service, JOBS)
    place.moment()
    with Redis.from_url(place.redis.url) as redis:
        redis.flushall()
    _wait_ready(place)
    known = [job for job in gone if place.service.client.get(f"/jobs/{job}").status_code != 404]
    tally = _judged(place, send(place.service, JOBS))
    tally.wrong += len(known)
    return tally


def cancel_against_finish(place: Place) -> Tally:
    """Cancel jobs about when they end: one final state each, that never changes again."""
    tally = Tally()
    for job_id in send(place.service, JOBS):
        time.sleep(random.uniform(0, 0.15))
        place.service.client.post(f"/jobs/{job_id}/cancel")
        first = place.service.finished(job_id)
        time.sleep(0.05)
        again = place.service.job(job_id)
        agrees = (first["status"] == "succeeded") == bool(first["images"])
        tally += Tally(jobs=1, wrong=not agrees or again != first)
    return tally


KINDS: dict[str, Callable[[Place], Tally]] = {
    "kill -9 worker in a batch": kill_worker,
    "SIGTERM worker under load": stop_worker,
    "kill -9 API while requests are taken in": kill_api,
    "kill -9 Redis": kill_redis,
    "storage answers 500 for 3 s": fail_storage,
    "storage hangs for 30 s": hang_storage,
    "cancel against finish": cancel_against_finish,
    "a worker's clock 40 s behind or 2 h ahead": skew_clock,
    "a worker of the previous release": roll_back_worker,
    "full Redis": fill_redis,
    "Redis loses everything": lose_redis,
}


def _judged(place: Place, sent: dict[str, int]) -> Tally:
    _wait_ready(place)
    return place.judge.judge(place.service, sent)


def _wait_ready(place: Place) -> None:
    def ready() -> bool:
        try:
            return place.service.client.get("/healthz/ready").is_success
        except httpx.HTTPError:
            return False

    until = time.monotonic() + 60
    while not ready() and time.monotonic() < until:
        time.sleep(0.2)
