"""What stands damaged in Redis costs one job at most, and its owner can end and delete it."""

import json
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from service.core import redis_keys
from service.core.job import REQUEST
from tests.running import until
from tests.service.conftest import Api, announce_warm

QUEUE = "rq:queue:imageprompt"
RUNNING = "rq:wip:imageprompt"
DEEP = "[" * 100_000
HUGE = 10**4000
PICTURE = {
    "key": "results/a/0.png",
    "content_type": "image/png",
    "width": 1,
    "height": 1,
    "seed": 1,
    "sha256": "ab" * 32,
}
TIMES = ("created_at", "started_at", "completed_at", "expires_at", "deadline_at")
FIELDS: dict[str, dict[str, object]] = {
    **{
        f"{name} {value}": {name: value}
        for name in TIMES
        for value in ("inf", "nan", "1e300", "-1e18", "x")
        if (name, value) != ("expires_at", "-1e18")  # its time is over
    },
    **{
        f"{name} deep": {name: DEEP}
        for name in ("images", "maps", "metrics", "error", "warnings", "request", "request_details")
    },
    **{f"step {value[:9]}": {"step": value} for value in ("inf", "nan", "1e400", "-3", "9" * 4000)},
    "attempt": {"attempt": "x"},
    "digest": {"images": json.dumps([PICTURE | {"sha256": "zz"}])},
    "seed": {"images": json.dumps([PICTURE | {"seed": HUGE}])},
    "type of a picture": {"images": json.dumps([PICTURE | {"content_type": "a\r\nb"}])},
    "size": {"images": json.dumps([PICTURE | {"width": HUGE}])},
    "metrics inf": {"metrics": '{"total_seconds": 1e400}'},
    "metrics nan": {"metrics": '{"total_seconds": NaN}'},
    "metrics of another type": {"metrics": "[1]"},
    "error surrogate": {"error": '{"type": "a", "title": "b", "detail": "\\ud800"}'},
    "warning surrogate": {"warnings": '[{"code": "\\udc00", "message": "x"}]'},
    "no status": {"status": ""},
    "status of tomorrow": {"status": "of-tomorrow"},
    "status without a text": {"status": b"\xff"},
    "no owner": {"owner": ""},
    "owner without a text": {"owner": b"\xff"},
    "id": {"id": "<script>"},
}
REQUESTS: dict[str, dict[str, object]] = {
    "prompt surrogate": {"prompt": "\ud800"},
    "model surrogate": {"model": "\udfff"},
    "model list": {"model": ["a"]},
    "no images": {"images": None},
    "images of numbers": {"images": [1, 2]},
    "image weights": {"images": [{"weight": "x"}]},
    "guidance inf": {"guidance_scale": float("inf")},
    "guidance nan": {"guidance_scale": float("nan")},
    "steps huge": {"steps": HUGE},
    "steps 0": {"steps": 0},
    "width huge": {"width": 8 * 10**400, "height": 8 * 10**400},
    "pictures huge": {"num_images": 10**400},
}


def of_another_type(redis: Redis, job_id: str) -> None:
    redis.delete(redis_keys.job(job_id))
    redis.set(redis_keys.job(job_id), "x")


def tombstone_of_another_type(redis: Redis, job_id: str) -> None:
    redis.delete(redis_keys.job(job_id), redis_keys.tombstone(job_id))
    redis.lpush(redis_keys.tombstone(job_id), "x")


def without_fields(redis: Redis, job_id: str) -> None:
    redis.hdel(redis_keys.job(job_id), "owner", "created_at", "status", REQUEST)


def events_of_another_type(redis: Redis, job_id: str) -> None:
    redis.delete(redis_keys.events(job_id))
    redis.set(redis_keys.events(job_id), "x")


def events_at_their_end(redis: Redis, job_id: str) -> None:
    last = 2**64 - 1
    redis.xadd(redis_keys.events(job_id), {"event": "a", "data": "b"}, id=f"{last}-{last}")


def _fields(changes: dict[str, object]) -> Callable[[Redis, str], None]:
    return lambda redis, job_id: redis.hset(redis_keys.job(job_id), mapping=changes)


def _request(changes: dict[str, object]) -> Callable[[Redis, str], None]:
    def damage(redis: Redis, job_id: str) -> None:
        name = redis_keys.job(job_id)
        redis.hset(name, REQUEST, json.dumps(json.loads(redis.hget(name, REQUEST)) | changes))

    return damage


DAMAGES: dict[str, Callable[[Redis, str], None]] = {
    **{name: _fields(changes) for name, changes in FIELDS.items()},
    **{name: _request(changes) for name, changes in REQUESTS.items()},
    **{
        one.__name__: one
        for one in (
            *(of_another_type, without_fields, events_of_another_type, events_at_their_end),
            tombstone_of_another_type,
        )
    },
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())


def serves_others(api: Api, other: str) -> None:
    """Each of what other clients do works."""
    client = api.client
    assert client.get(f"/jobs/{other}").json()["status"] == "queued"
    assert other in {job["id"] for job in client.get("/jobs?limit=5").json()["jobs"]}
    assert other in {job["id"] for job in client.get("/v1/predictions?limit=5").json()["results"]}
    assert "imageprompt_queue_jobs" in client.get("/metrics").text


@pytest.fixture
def other(api: Api) -> Iterator[str]:
    """A job that is in order."""
    announce_warm(api.redis, row_steps_per_second=20.0)
    job_id = api.job()
    yield job_id
    api.redis.delete(RUNNING)
    assert api.client.delete(f"/jobs/{job_id}").status_code == 204


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_the_estimates_of_others_go_on(api: Api, other: str, state: str) -> None:
    """All damages at once: the queue is read as a whole."""
    jobs = []
    for damage in DAMAGES.values():
        jobs.append(api.job())
        if state == "running":
            api.claim(jobs[-1])
            api.redis.lrem(QUEUE, 0, jobs[-1])
            api.redis.zadd(RUNNING, {f"{jobs[-1]}:w": time.time() + 3600})
        damage(api.redis, jobs[-1])
    until(lambda: _running(api) == (len(jobs) if state == "running" else 0))
    api.redis.lrem(QUEUE, 0, other)
    api.redis.lpush(QUEUE, other)  # the oldest waiting job is in order
    assert 0 < api.client.get(f"/jobs/{other}").json()["eta_seconds"] < 6000
    assert api.client.delete(f"/jobs/{api.job()}").status_code == 204
    for job_id in jobs:
        api.client.delete(f"/jobs/{job_id}")
        api.redis.lrem(QUEUE, 0, job_id)
        api.redis.delete(redis_keys.job(job_id), redis_keys.tombstone(job_id))


def _running(api: Api) -> float:
    [line] = [
        line
        for line in api.client.get("/metrics").text.splitlines()
        if line.startswith("imageprompt_running_jobs ")
    ]
    return float(line.split()[1])


@damaged
def test_others_are_served_and_its_owner_can_end_and_delete_it(
    api: Api, other: str, damage: Callable[[Redis, str], None]
) -> None:
    job_id = api.job()
    damage(api.redis, job_id)
    serves_others(api, other)
    assert api.client.get(f"/v1/predictions/{job_id}").status_code < 500
    shown = api.client.get(f"/jobs/{job_id}")
    canceled = api.client.post(f"/jobs/{job_id}/cancel")
    assert (shown.status_code, canceled.status_code) in {(200, 200), (410, 410), (404, 404)}
    if canceled.status_code == 200:
        assert canceled.json()["status"] == "canceled"
        assert canceled.json()["id"] == job_id
    deleted = api.client.delete(f"/jobs/{job_id}").status_code
    assert deleted == (404 if shown.status_code == 404 else 204)
    api.redis.delete(redis_keys.tombstone(job_id))
    assert api.client.get(f"/jobs/{job_id}").status_code == 404


@damaged
def test_one_that_has_ended_can_be_read_beside(
    api: Api, other: str, damage: Callable[[Redis, str], None]
) -> None:
    job_id = api.job()
    api.finish(job_id)
    damage(api.redis, job_id)
    serves_others(api, other)
    for path in ("", "/images/0", "/maps/0"):
        assert api.client.get(f"/jobs/{job_id}{path}").status_code < 500
    assert api.client.post(f"/jobs/{job_id}/cancel").status_code < 500
    assert api.client.delete(f"/jobs/{job_id}").status_code in (204, 404, 410)
    api.redis.delete(redis_keys.tombstone(job_id), redis_keys.job(job_id))
