"""What stands damaged in Redis costs one job at most, and its owner can end and delete it."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock
from urllib.parse import parse_qsl

import pytest
import redis.asyncio as aioredis
from redis import Redis, ResponseError

from service.core import redis_keys
from service.core.job import REQUEST, Job, write_request
from service.core.queue import enqueue, open_queue
from service.core.transitions import Transitions
from service.jobs.eta import Estimates
from service.jobs.queue import JobQueue
from service.limits import RateLimits
from service.routes.answers import poll_again
from service.signed_urls import SignedUrls
from service.webhooks.delivery import Outbox
from tests.requests import generate_request
from tests.running import until
from tests.service.conftest import Api, announce_warm

QUEUE = "rq:queue:imageprompt"
RUNNING = "rq:wip:imageprompt"
DEEP = "[" * 100_000
HUGE = 10**4000
REQUEST_TEXT = write_request(generate_request())[REQUEST]
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


def test_expiry_goes_on_beside_damaged_ids(redis: Redis) -> None:
    transitions = Transitions(redis, retention_seconds=60, tombstone_seconds=60, max_attempts=3)
    queue = open_queue("q", redis)
    honest = Job(
        id="honest", owner="me", status="queued", request=generate_request(), created_at=1.0
    )
    enqueue(queue, transitions, honest)
    redis.set(redis_keys.job("typed"), "x")
    redis.set(redis_keys.events("streamed"), "x")
    redis.hset(redis_keys.job("streamed"), mapping={"status": "queued"})
    redis.hset(redis_keys.job("unknown"), mapping={"status": "of-tomorrow"})
    redis.zadd(
        redis_keys.DEADLINES,
        {"typed": 1, b"\xff\xfe": 1, "": 1, "streamed": 1, "unknown": 1, "honest": 2},
    )
    jobs = JobQueue(queue, AsyncMock(), transitions, AsyncMock(), server=AsyncMock(), max_jobs=9)
    asyncio.run(jobs.expire_overdue())
    asyncio.run(jobs.expire_overdue())
    assert redis.hget(redis_keys.job("honest"), "status") == b"expired"
    assert redis.zrange(redis_keys.DEADLINES, 0, -1) == []


def test_a_queue_that_cannot_expire_one_job_expires_the_others() -> None:
    transitions, queue = Mock(), Mock()
    transitions.overdue.return_value = ["a", "b"]
    transitions.expire.side_effect = [ResponseError("of another kind"), True]
    jobs = JobQueue(queue, AsyncMock(), transitions, AsyncMock(), server=AsyncMock(), max_jobs=9)
    asyncio.run(jobs.expire_overdue())
    assert [call.args for call in transitions.expire.call_args_list] == [("a",), ("b",)]


@pytest.mark.parametrize(
    "metrics",
    [
        '{"total_seconds": 1e400}',
        '{"total_seconds": 1e300}',
        '{"total_seconds": NaN}',
        '{"total_seconds": 1, "queue_seconds": -1e9}',
        DEEP,
        None,
    ],
)
def test_estimates_are_not_poisoned_by_one_that_has_ended(
    redis: Redis, redis_url: str, metrics: str | None
) -> None:
    async def seconds() -> list[float | None]:
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        told, clock = [], iter(range(10, 1000, 10))
        estimates = Estimates(
            client, "imageprompt", SimpleNamespace(models={}), clock=lambda: next(clock)
        )
        for member in ("ends:w", "goes-on:w"):
            redis.zadd(RUNNING, {member: 2e9})
            redis.hset(
                redis_keys.job(member[:-2]),
                mapping={"status": "processing", "step": 1, REQUEST: REQUEST_TEXT},
            )
        told.append((await estimates.snapshot()).seconds_to_end["goes-on"])
        redis.zrem(RUNNING, "ends:w")
        redis.delete(redis_keys.job("ends"))
        if metrics is None:
            redis.set(redis_keys.job("ends"), "x")
        else:
            ended = {"status": "succeeded", "metrics": metrics, "completed_at": "inf"}
            redis.hset(redis_keys.job("ends"), mapping=ended)
        told.append((await estimates.snapshot()).seconds_to_end["goes-on"])
        await client.aclose()
        return told

    announce_warm(redis, row_steps_per_second=20.0)
    before, after = asyncio.run(seconds())
    assert after is not None
    assert 0 < after <= before


@pytest.mark.parametrize("eta", [float("inf"), float("nan"), 1e300, -5.0, None])
def test_a_client_is_told_when_to_poll_again(eta: float | None) -> None:
    assert 1 <= int(poll_again(eta)["Retry-After"]) <= 30


@pytest.mark.parametrize(
    "key",
    [
        redis_keys.owner_jobs("anonymous"),
        redis_keys.active_jobs("anonymous"),
        redis_keys.DEADLINES,
        redis_keys.OUTBOX,
        redis_keys.OUTBOX_ATTEMPTS,
        redis_keys.WORKERS,
        QUEUE,
        f"{QUEUE}:intermediate",
        RUNNING,
    ],
)
def test_an_index_of_another_type_is_written_anew(api: Api, key: str) -> None:
    before = api.job()
    api.redis.delete(key)
    api.redis.set(key, "x")
    for path in ("/jobs", "/v1/predictions", "/healthz/live", f"/jobs/{before}"):
        assert api.client.get(path).status_code == 200
    assert "imageprompt_queue_jobs" in api.client.get("/metrics").text
    job_id = api.job()
    assert job_id in {job["id"] for job in api.client.get("/jobs").json()["jobs"]}
    api.finish(job_id)
    for made in (before, job_id):
        assert api.client.delete(f"/jobs/{made}").status_code == 204
    api.redis.delete(key)


def test_odd_members_of_a_list_are_passed_over(api: Api, other: str) -> None:
    index = redis_keys.owner_jobs("anonymous")
    odd = {b"\xff\xfe": 2e9, "x" * 100_000: 2e9, "": 2e9, "..": float("inf"), "-": float("-inf")}
    api.redis.zadd(index, odd)
    page = api.client.get("/jobs?limit=1").json()
    assert [job["id"] for job in page["jobs"]] == [other]
    while page["next"]:
        answer = api.client.get(page["next"])
        assert answer.status_code == 200
        page = answer.json()
    api.redis.zrem(index, *odd)


@pytest.mark.parametrize("content", ["x", "nan", "inf", "1e300", "-1e300", "9" * 400, None])
def test_a_damaged_pace_locks_no_caller_out(
    redis: Redis, redis_url: str, content: str | None
) -> None:
    async def spend() -> None:
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        limits = RateLimits(client)
        assert [(await limits.spend("me", 2))[1] is None for _ in range(3)] == [True, True, False]
        assert await limits.reserve("me", "a", 5)
        await client.aclose()

    if content is None:
        redis.lpush(redis_keys.rate("me"), "x")
        redis.set(redis_keys.active_jobs("me"), "x")
    else:
        redis.set(redis_keys.rate("me"), content)
    asyncio.run(spend())


@pytest.mark.parametrize(
    "secrets",
    [{"a": "1 abc"}, {"a": "9" * 400 + " " + "ab" * 32}, {"a": b"\xff"}, {b"\xff": "1 ab"}, None],
)
def test_damaged_secrets_leave_urls_signed(
    redis: Redis, redis_url: str, secrets: dict[str, str] | None
) -> None:
    async def sign() -> str:
        client = aioredis.Redis.from_url(
            redis_url, decode_responses=True, encoding_errors="replace"
        )
        urls = SignedUrls(client, lifetime_seconds=60)
        query = dict(parse_qsl((await urls.signer("me")).sign("path")[1:]))
        owner = await urls.verify("path", query)
        await client.aclose()
        return owner

    if secrets is None:
        redis.set(redis_keys.URL_SECRETS, "x")
    else:
        redis.hset(
            redis_keys.URL_SECRETS,
            mapping={name: _now(redis, text) for name, text in secrets.items()},
        )
    assert asyncio.run(sign()) == "me"


def _now(redis: Redis, text: str | bytes) -> str | bytes:
    """With the time at which a secret is valid in place of a 1."""
    if isinstance(text, str) and text.startswith("1 "):
        return f"{redis.time()[0]}{text[1:]}"
    return text


@pytest.mark.parametrize("value", [{"attempts": "x"}, {"outbox": "x"}, {"count": "x"}])
def test_the_outbox_goes_on(redis: Redis, redis_url: str, value: dict[str, str]) -> None:
    async def take() -> list[tuple[str, int]]:
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        outbox = Outbox(client)
        if "outbox" in value:
            assert await outbox.take(5) == []
            redis.zadd(redis_keys.OUTBOX, {"a": 1})
        taken = await outbox.take(5)
        await outbox.retry("a", 5)
        await outbox.defer("a", 5)
        await outbox.remove("a")
        await client.aclose()
        return taken

    redis.zadd(redis_keys.OUTBOX, {"a": 1})
    if "outbox" in value:
        redis.delete(redis_keys.OUTBOX)
        redis.set(redis_keys.OUTBOX, "x")
    elif "attempts" in value:
        redis.set(redis_keys.OUTBOX_ATTEMPTS, "x")
    else:
        redis.hset(redis_keys.OUTBOX_ATTEMPTS, "a", "x")
    assert asyncio.run(take()) == [("a", 1)]
    assert redis.zcard(redis_keys.OUTBOX) == 0


def test_an_idempotency_key_of_another_type_begins_anew(api: Api) -> None:
    headers = {"idempotency-key": "damaged"}
    digest = hashlib.sha256(b"damaged").hexdigest()
    api.redis.set(redis_keys.idempotency("anonymous", digest), "x")
    first, again = (api.post({"steps": 5}, headers=headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    api.client.delete(f"/jobs/{first.json()['id']}")
