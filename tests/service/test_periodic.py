"""What is kept goes when its time is over, and at once when its owner says so."""

import asyncio
import os
import time
import uuid
from pathlib import Path

import pytest
import redis.asyncio as aioredis
from redis import Redis

from service.core import redis_keys
from service.core.job import JobMetrics
from service.core.storage import Storage
from service.periodic import ORPHAN_SECONDS, StorageSweep
from tests.buckets import Bucket
from tests.service.conftest import Api, problem


@pytest.mark.parametrize("state", ["queued", "running", "done"])
def test_deleting_a_job_leaves_nothing_of_it(api: Api, state: str) -> None:
    before = api.leftovers()
    job_id = api.job()
    claim = None if state == "queued" else api.claim(job_id)
    if state == "done":
        assert claim is not None
        assert api.transitions.hand_back(claim)
        api.finish(job_id)
    answer = api.client.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    files, names = api.leftovers()
    assert not any(job_id in name for name in files | names)
    assert files <= before[0]
    if claim is not None:
        assert not api.transitions.succeed(claim, (), JobMetrics(), 30)
        assert not api.redis.exists(redis_keys.job(job_id)), "a late worker brings nothing back"
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/images/0")):
        problem(api.client.request(method, f"/jobs/{job_id}{path}"), 404)
    assert job_id not in api.client.get("/jobs?limit=100").text
    assert not list(api.folder.glob(f"*/{job_id}"))


def test_who_follows_a_job_that_is_deleted_is_not_left_hanging(api: Api) -> None:
    job_id = api.job()
    with api.client.stream("GET", f"/jobs/{job_id}/events", timeout=60) as answer:
        lines = answer.iter_lines()
        assert "event: status" in lines  # read up to there
        assert api.client.delete(f"/jobs/{job_id}").status_code == 204
        for _ in lines:
            pass  # to the end, which must come


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A folder as storage."""
    return Storage.open((tmp_path / "storage").as_uri(), presigned_url_seconds=60)


def sweep(redis_url: str, storage: Storage, now: float) -> None:
    """One sweep at the time `now`."""

    async def run() -> None:
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        await StorageSweep(
            client, storage, every_seconds=60, index_seconds=1000, clock=lambda: now
        ).step()
        await client.aclose()

    asyncio.run(run())


def test_pictures_go_with_their_job_and_not_before(
    redis: Redis, redis_url: str, storage: Storage, tmp_path: Path
) -> None:
    now = time.time()
    expired, kept, running, orphan, fresh = (str(uuid.uuid4()) for _ in range(5))
    for job_id in (expired, kept, running, orphan, fresh):
        storage.put(redis_keys.upload(job_id, "image-0.png"), b"x", "image/png")
        storage.put(redis_keys.result(job_id, "0.png"), b"x", "image/png")
    redis.hset(redis_keys.job(expired), mapping={"status": "succeeded", "expires_at": now - 1})
    redis.hset(redis_keys.job(kept), mapping={"status": "succeeded", "expires_at": now + 9})
    redis.hset(redis_keys.job(running), mapping={"status": "processing"})
    old = now - ORPHAN_SECONDS - 5
    for job_id in (orphan, running):
        for path in (tmp_path / "storage").glob(f"*/{job_id}/*"):
            os.utime(path, (old, old))
    redis.zadd(redis_keys.owner_jobs("me"), {"gone": now - 2000, kept: now - 10})
    sweep(redis_url, storage, now)
    for folder in ("uploads", "results"):
        left = {path.name for path in (tmp_path / "storage" / folder).iterdir()}
        assert left == {kept, running, fresh}
    assert redis.zrange(redis_keys.owner_jobs("me"), 0, -1) == [kept.encode()]
    sweep(redis_url, storage, now + 100)
    assert (tmp_path / "storage" / "uploads" / kept).exists(), "one process sweeps for all"
    redis.delete(redis_keys.SWEEP)
    sweep(redis_url, storage, now + 100)
    assert not (tmp_path / "storage" / "uploads" / kept).exists()


def test_a_bucket_is_left_to_its_own_rule(redis_url: str, bucket: Bucket) -> None:
    """Listing one would cost more than it frees; k8s/README.md names the rule."""
    storage = bucket.storage()
    storage.put(redis_keys.upload(str(uuid.uuid4()), "image-0.png"), b"x", "image/png")
    before = bucket.names()
    sweep(redis_url, storage, time.time() + ORPHAN_SECONDS + 60)
    assert bucket.names() == before != []
