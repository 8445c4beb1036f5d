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


def sweep(redis_url: str, storage: Storage) -> None:
    """One sweep."""

    async def run() -> None:
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        await StorageSweep(client, storage, every_seconds=60, index_seconds=1000).step()
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
    sweep(redis_url, storage)
    for folder in ("uploads", "results"):
        left = {path.name for path in (tmp_path / "storage" / folder).iterdir()}
        assert left == {kept, running, fresh}
    assert redis.zrange(redis_keys.owner_jobs("me"), 0, -1) == [kept.encode()]
    redis.hset(redis_keys.job(kept), "expires_at", now - 1)
    sweep(redis_url, storage)
    assert (tmp_path / "storage" / "uploads" / kept).exists(), "one process sweeps for all"
    redis.delete(redis_keys.SWEEP)
    sweep(redis_url, storage)
    assert not (tmp_path / "storage" / "uploads" / kept).exists()


def test_files_of_later_requests_go_when_their_record_has(
    redis: Redis, redis_url: str, storage: Storage, tmp_path: Path
) -> None:
    expired, kept, fresh = (str(uuid.uuid4()) for _ in range(3))
    old = time.time() - ORPHAN_SECONDS - 5
    for file_id in (expired, kept, fresh):
        key = redis_keys.stored_file(file_id)
        storage.put(key, b"x", "image/png")
        if file_id != fresh:
            os.utime(tmp_path / "storage" / key, (old, old))
    redis.set(redis_keys.file(kept), "{}")
    sweep(redis_url, storage)
    left = {path.name for path in (tmp_path / "storage" / redis_keys.FILES_FOLDER).iterdir()}
    assert left == {kept, fresh}


@pytest.mark.parametrize("damage", ["x", "nan", "inf", "1e300", "type", "index"])
def test_a_damaged_record_stops_no_sweep(
    redis: Redis, redis_url: str, storage: Storage, tmp_path: Path, damage: str
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(4)]
    storage.put(redis_keys.upload("fresh", "image-0.png"), b"x", "image/png")
    for job_id in ids:
        storage.put(redis_keys.upload(job_id, "image-0.png"), b"x", "image/png")
        redis.hset(redis_keys.job(job_id), mapping={"status": "succeeded", "expires_at": "1.0"})
    left = {ids[1], "fresh"}
    if damage == "type":
        redis.delete(redis_keys.job(ids[1]))
        redis.set(redis_keys.job(ids[1]), "x")
    elif damage == "index":
        redis.set(redis_keys.owner_jobs("zz"), "x")
        left = {"fresh"}
    else:
        redis.hset(redis_keys.job(ids[1]), "expires_at", damage)
    sweep(redis_url, storage)
    assert {path.name for path in (tmp_path / "storage" / "uploads").iterdir()} == left


def test_a_bucket_is_left_to_its_own_rule(redis_url: str, bucket: Bucket) -> None:
    """Listing one would cost more than it frees; k8s/README.md names the rule."""
    storage = bucket.storage()
    storage.put(redis_keys.upload(str(uuid.uuid4()), "image-0.png"), b"x", "image/png")
    before = bucket.names()
    sweep(redis_url, storage)
    assert bucket.names() == before != []


def old_job(storage: Storage, folder: Path) -> str:
    """Uploads and pictures of a job, written long ago."""
    job_id, old = str(uuid.uuid4()), time.time() - ORPHAN_SECONDS - 5
    storage.put(redis_keys.upload(job_id, "image-0.png"), b"x", "image/png")
    storage.put(redis_keys.result(job_id, "0.png"), b"x", "image/png")
    for path in folder.glob(f"*/{job_id}/*"):
        os.utime(path, (old, old))
    return job_id


@pytest.mark.parametrize("swept_before", [True, False], ids=["swept before", "never swept"])
def test_a_redis_that_lost_its_data_lets_no_picture_be_deleted(
    redis: Redis, redis_url: str, storage: Storage, tmp_path: Path, *, swept_before: bool
) -> None:
    folder = tmp_path / "storage"
    jobs = [old_job(storage, folder) for _ in range(2)]
    for job_id in jobs:
        redis.hset(redis_keys.job(job_id), mapping={"status": "succeeded"})
    if swept_before:
        sweep(redis_url, storage)
    redis.flushdb()
    sweep(redis_url, storage)
    assert {path.name for path in (folder / "results").iterdir()} == set(jobs)


def test_another_redis_sweeps_no_folder_that_is_not_its_own(
    redis: Redis, redis_url: str, fresh_redis_url, storage: Storage, tmp_path: Path
) -> None:
    job_id = old_job(storage, tmp_path / "storage")
    redis.hset(redis_keys.job(job_id), mapping={"status": "succeeded"})
    sweep(redis_url, storage)
    sweep(fresh_redis_url(), storage)
    assert (tmp_path / "storage" / "results" / job_id).exists()
    redis.delete(redis_keys.SWEEP, redis_keys.job(job_id))
    sweep(redis_url, storage)
    assert not (tmp_path / "storage" / "results" / job_id).exists()


def test_a_machine_with_a_wrong_clock_deletes_no_fresh_upload(
    redis: Redis, redis_url: str, storage: Storage, tmp_path: Path, monkeypatch
) -> None:
    fresh, known = str(uuid.uuid4()), str(uuid.uuid4())
    for job_id in (fresh, known):
        storage.put(redis_keys.upload(job_id, "image-0.png"), b"x", "image/png")
    redis.hset(
        redis_keys.job(known), mapping={"status": "succeeded", "expires_at": time.time() + 600}
    )
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    sweep(redis_url, storage)
    left = {path.name for path in (tmp_path / "storage" / "uploads").iterdir()}
    assert left == {fresh, known}
