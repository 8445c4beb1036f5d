"""The faults: each breaks one real process or connection at a random moment."""

import random
import threading
import time
from collections.abc import Callable

import httpx

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
}


def _judged(place: Place, sent: dict[str, int]) -> Tally:
    def ready() -> bool:
        try:
            return place.service.client.get("/healthz/ready").is_success
        except httpx.HTTPError:
            return False

    until = time.monotonic() + 60
    while not ready() and time.monotonic() < until:
        time.sleep(0.2)
    return place.judge.judge(place.service, sent)
