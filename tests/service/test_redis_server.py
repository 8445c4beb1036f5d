"""A Redis that is full, read-only or of another kind: named, and accepted jobs are not stopped."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from redis import Redis

from service import api_keys
from service.core.redis_server import HEADROOM
from tests import redis_kinds
from tests.running import Running, start_api, until
from tests.service.conftest import PNG, problem

FILES = {"image": ("a.png", PNG)}


def test_a_full_redis_refuses_new_jobs_and_lets_accepted_ones_end(
    make_api: Callable[..., Running], tmp_path: Path, storage_url: str
) -> None:
    with redis_kinds.server(tmp_path / "redis") as port, Redis(port=port) as redis:
        key, record = api_keys.make_key("test", now=time.time(), requests_per_minute=600)
        api_keys.save(redis, record)
        settings = {"redis_url": f"redis://127.0.0.1:{port}/0", "storage_url": storage_url}
        with (
            make_api(**settings) as running,
            httpx.Client(base_url=running.url, timeout=60, headers={"x-api-key": key}) as client,
        ):
            job_id, other = (client.post("/generate", files=FILES).json()["id"] for _ in range(2))
            used = redis.info("memory")["used_memory"]
            redis.config_set("maxmemory", int(used / (1 - HEADROOM / 2)))
            until(lambda: client.post("/generate", files=FILES).status_code == 503)
            refused = client.post("/generate", files=FILES)
            assert "Redis is full" in str(problem(refused, 503)["detail"])
            redis_kinds.fill(redis)
            assert client.get(f"/jobs/{job_id}").json()["status"] == "queued"
            assert client.get("/jobs").status_code == 200
            until(lambda: not client.get("/healthz/ready").json()["redis"], what="its readiness")
            # A scrape does not wait for a slow Redis, and leaves its figures out.
            until(lambda: "imageprompt_redis_memory_limit_bytes 1.0" in client.get("/metrics").text)
            assert client.post(f"/jobs/{job_id}/cancel").json()["status"] == "canceled"
            for ended in (job_id, other):
                assert client.delete(f"/jobs/{ended}").status_code == 204
            assert [name for name in redis.keys("*") if job_id.encode() in name] == []
            redis.config_set("maxmemory", 0)
            until(lambda: client.post("/generate", files=FILES).status_code == 202)


def test_a_replica_is_not_ready(
    make_api: Callable[..., Running], tmp_path: Path, storage_url: str
) -> None:
    with (
        redis_kinds.server(tmp_path / "primary") as primary,
        redis_kinds.server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(primary)) as port,
        make_api(redis_url=f"redis://127.0.0.1:{port}/0", storage_url=storage_url) as running,
    ):
        detail = problem(httpx.post(f"{running.url}/generate", files=FILES), 503)["detail"]
        assert "read-only replica" in str(detail)
        assert httpx.get(f"{running.url}/healthz/ready").json()["redis"] is False


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"options": ("--cluster-enabled", "yes")}, "cluster mode"),
        ({"sentinel": True}, "names a Sentinel"),
    ],
    ids=["cluster", "Sentinel"],
)
def test_a_redis_that_cannot_hold_jobs_is_refused_at_start(
    tmp_path: Path, storage_url: str, kind: dict[str, object], words: str
) -> None:
    options = kind.get("options", ())
    with redis_kinds.server(tmp_path / "redis", *options, sentinel="sentinel" in kind) as port:
        settings = {"redis_url": f"redis://127.0.0.1:{port}/0", "storage_url": storage_url}
        with start_api(settings, tmp_path / "log") as running:
            assert until(running.process.poll, seconds=120) == 2
        assert words in running.tail()
