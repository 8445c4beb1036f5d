"""What an answer says was done is what was done, also where a dependency went away in between."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis import Redis
from redis.exceptions import ConnectionError as RedisAway
from starlette.testclient import TestClient

from service.app import create_app
from service.core.settings import Settings
from service.core.storage import Storage, StorageError
from service.jobs import eta, queue
from tests.service.conftest import PNG

FILES = {"image": ("a.png", PNG)}


@pytest.fixture
def client(redis_url: str, tmp_path: Path) -> Iterator[TestClient]:
    """The API in this process, so that its dependencies can go away at a chosen line."""
    settings = Settings(redis_url=redis_url, storage_url=tmp_path.as_uri(), host="127.0.0.1")
    with TestClient(create_app(settings)) as client:
        yield client


def away(*_: object, **__: object) -> None:
    raise StorageError("away")


def test_a_delete_that_the_storage_stopped_halfway_says_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = client.post("/generate", files=FILES).json()["id"]
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete_folder", away)
        refused = client.delete(f"/jobs/{job_id}")
    assert refused.status_code == 503
    assert "the job has ended" in refused.json()["detail"]
    assert "nothing was changed" not in refused.json()["detail"]
    assert client.get(f"/jobs/{job_id}").json()["status"] == "canceled"
    assert client.delete(f"/jobs/{job_id}").status_code == 204


def test_an_upload_that_the_storage_refused_has_changed_nothing(
    client: TestClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "put_async", away)
    refused = client.post("/generate", files=FILES)
    assert refused.status_code == 503
    assert "nothing was changed" in refused.json()["detail"]
    assert not redis.llen("rq:queue:imageprompt")


def test_a_job_that_may_be_queued_is_not_called_unchanged(
    client: TestClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the transaction was lost, and so is the second look."""
    real = queue.enqueue

    def lose(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        monkeypatch.setattr(aioredis.Redis, "exists", gone)
        raise RedisAway

    async def gone(*_: object) -> None:
        raise RedisAway

    monkeypatch.setattr(queue, "enqueue", lose)
    refused = client.post("/generate", files=FILES, headers={"idempotency-key": "k"})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "may be queued" in refused.json()["detail"]
    assert "Idempotency-Key" in refused.json()["detail"]
    assert redis.llen("rq:queue:imageprompt") == 1
    monkeypatch.undo()
    again = client.post("/generate", files=FILES, headers={"idempotency-key": "k"})
    assert again.headers["idempotency-replayed"] == "true"
    assert redis.llen("rq:queue:imageprompt") == 1


def test_jobs_that_wait_are_not_forgotten_by_the_estimates(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eta, "_JOBS_CACHED", 2)
    monkeypatch.setattr(eta, "SNAPSHOT_SECONDS", 0)
    jobs = [client.post("/generate", files=FILES).json()["id"] for _ in range(5)]
    for ahead, job_id in enumerate(jobs):
        shown = client.get(f"/jobs/{job_id}")
        assert (shown.status_code, shown.json()["queue_position"]) == (200, ahead)
