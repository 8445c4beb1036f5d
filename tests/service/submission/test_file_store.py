"""Files for later requests: a damaged record, a full Redis, a wrong clock."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import redis.asyncio as aioredis
from redis import Redis, RedisError

from service.core import redis_keys
from service.core.redis_server import HEADROOM
from service.core.storage import Storage
from service.submission.file_store import MAX_FILES, FileStore
from tests import redis_kinds
from tests.running import Running, until
from tests.service.conftest import PNG, Api, problem

CONTENT = {"content": ("a.png", PNG)}
UPLOAD = SimpleNamespace(
    filename="a.png", size_bytes=1, sha256="ab", content=SimpleNamespace(read=lambda: b"x")
)
DAMAGES: dict[str, dict[str, object]] = {
    **{f"created {at}": {"created_at": at} for at in (1e300, -1e18, float("inf"), float("nan"))},
    "created last": {"created_at": 253_402_300_000},
    "metadata nan": {"metadata": {"a": float("nan")}},
    "metadata inf": {"metadata": {"a": [float("inf")]}},
    "metadata surrogate": {"metadata": {"a": "\ud800"}},
    "metadata list": {"metadata": []},
    "size": {"size_bytes": 10**4000},
    "size negative": {"size_bytes": -1},
    "name surrogate": {"name": "\ud800"},
    "no name": {"name": None},
    "id": {"id": "../../x"},
    "owner": {"owner": None},
}


def upload(client: httpx.Client) -> str:
    """The id of a new file."""
    answer = client.post("/v1/files", files=CONTENT)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize("damage", [*DAMAGES.values(), "x", "[" * 100_000, None], ids=str)
def test_a_damaged_record_costs_its_own_file(
    api: Api, damage: dict[str, object] | str | None
) -> None:
    other, file_id = upload(api.client), upload(api.client)
    name = redis_keys.file(file_id)
    if isinstance(damage, dict):
        api.redis.set(name, json.dumps(json.loads(api.redis.get(name)) | damage))
    elif damage is not None:
        api.redis.set(name, damage)
    else:
        api.redis.delete(name)
        api.redis.lpush(name, "x")
    listed = {one["id"] for one in api.client.get("/v1/files").json()["results"]}
    assert other in listed
    assert file_id not in listed
    problem(api.client.get(f"/v1/files/{file_id}"), 404)
    assert api.client.delete(f"/v1/files/{file_id}").status_code == 204
    assert not api.redis.exists(name)
    assert not (api.folder / redis_keys.stored_file(file_id)).exists()
    assert api.client.delete(f"/v1/files/{other}").status_code == 204


def test_a_damaged_file_of_another_caller_is_left_alone(api: Api) -> None:
    name = redis_keys.file("of-another")
    api.redis.lpush(name, "x")
    problem(api.client.delete("/v1/files/of-another"), 404)
    assert api.redis.delete(name)


def test_a_list_of_another_type_is_written_anew(api: Api) -> None:
    first = upload(api.client)
    [index] = api.redis.keys(redis_keys.owner_files("*"))
    api.redis.delete(index)
    api.redis.set(index, "x")
    assert api.client.get("/v1/files").json()["results"] == []
    assert api.client.delete(f"/v1/files/{first}").status_code == 204
    second = upload(api.client)
    assert [one["id"] for one in api.client.get("/v1/files").json()["results"]] == [second]
    assert api.client.delete(f"/v1/files/{second}").status_code == 204


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e400}', '{"a": "\\ud800"}', "[1]", "{"])
def test_metadata_that_cannot_be_sent_back_are_refused(api: Api, text: str) -> None:
    answer = api.client.post("/v1/files", files=CONTENT, data={"metadata": text})
    assert answer.status_code == 422
    assert "metadata" in answer.text


@pytest.mark.parametrize("ahead_seconds", [-7200, 7200])
def test_a_process_with_a_wrong_clock_keeps_the_new_file(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_seconds: float
) -> None:
    async def fill() -> None:
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        store = FileStore(client, Storage.open(tmp_path.as_uri(), presigned_url_seconds=60))

        async def add() -> str:
            return (await store.add(UPLOAD, owner="me", share="me", metadata={})).id

        old = [await add() for _ in range(MAX_FILES)]
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + ahead_seconds)
        new = await add()
        found = [one.id for one in await store.list(owner="me", share="me")]
        assert found == [new, *old[:0:-1]]
        await client.aclose()

    asyncio.run(fill())


def test_a_full_redis_refuses_files_as_it_does_jobs_and_lets_them_be_deleted(
    make_api: Callable[..., Running], tmp_path: Path
) -> None:
    folder = tmp_path / "storage"
    with (
        redis_kinds.server(tmp_path / "redis") as port,
        Redis(port=port) as redis,
        make_api(redis_url=f"redis://127.0.0.1:{port}/0", storage_url=folder.as_uri()) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        kept = upload(client)
        used = redis.info("memory")["used_memory"]
        redis.config_set("maxmemory", int(used / (1 - HEADROOM / 2)))
        until(
            lambda: client.post("/generate", files={"image": CONTENT["content"]}).status_code == 503
        )
        assert "Redis is full" in str(client.post("/v1/files", files=CONTENT).json()["detail"])
        redis_kinds.fill(redis)
        assert client.post("/v1/files", files=CONTENT).status_code == 503
        assert [path.name for path in (folder / "files").iterdir()] == [kept]
        assert client.delete(f"/v1/files/{kept}").status_code == 204
        assert redis.keys("*file*") == []
        assert list((folder / "files").glob("*/*")) == []


def test_a_file_that_cannot_be_recorded_is_not_kept(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where Redis has become full since it was asked."""

    async def add(port: int) -> None:
        client = aioredis.Redis(port=port, decode_responses=True)
        store = FileStore(client, Storage.open(tmp_path.as_uri(), presigned_url_seconds=60))
        with pytest.raises(RedisError):
            await store.add(UPLOAD, owner="me", share="me", metadata={})
        await client.aclose()

    with redis_kinds.server(tmp_path_factory.mktemp("redis")) as port, Redis(port=port) as redis:
        redis_kinds.fill(redis)
        asyncio.run(add(port))
        assert redis.keys("*") == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
