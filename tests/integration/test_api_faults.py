"""The API killed, told to stop, and fed rubbish in its own store: what it had said stays true."""

import os
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from redis import Redis

from service.cli import processes
from service.core import redis_keys
from tests import corpus, hostile, hostile_clients
from tests.running import Running, until

PNG = corpus.saved(corpus.picture(), "PNG")
KILLS = int(os.environ.get("KILLS", "2"))
FILES = {"image": ("a.png", PNG)}


class RestartedApi:
    """An API that is killed and started again on one port."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self._settings = {
            "redis_url": redis_url,
            "storage_url": (folder / "storage").as_uri(),
            "max_queued_jobs": 10**6,  # nobody works on them
        }
        self._port = processes.free_port()
        self._log = folder / "log"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {**self._settings, "port": self._port}
        self.running = Running(["-m", "service"], self._port, settings, self._log, grace=30)
        self.running.wait("/healthz/live")


@pytest.fixture
def api(redis_url: str, tmp_path: Path) -> RestartedApi:
    """A running API."""
    return RestartedApi(redis_url, tmp_path)


def test_no_request_is_lost_or_doubled_by_kill_9(
    api: RestartedApi, redis: Redis, tmp_path: Path
) -> None:
    """Clients send the same Idempotency-Key until they are answered, as they should.

    KILLS=20 in the environment makes it the longer trial of docs/reliability.md.
    """
    ending = threading.Event()

    def answer_to(key: str) -> str | None:
        headers = {"idempotency-key": key}
        try:
            answer = httpx.post(f"{api.running.url}/generate", files=FILES, headers=headers)
        except httpx.TransportError:
            return None
        if answer.status_code == 202:
            return str(answer.json()["id"])
        assert answer.status_code in (409, 503), answer.text
        time.sleep(0.2)
        return None

    def send(_: int) -> list[str]:
        made = []
        while not ending.is_set():
            key = uuid.uuid4().hex
            made.append(until(lambda: answer_to(key), what=f"202 for {key}"))  # noqa: B023  called at once
        return made

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(send, number) for number in range(4)]
        try:
            for _ in range(KILLS):
                time.sleep(random.uniform(0.3, 0.8))
                api.running.kill()
                api.start()
            time.sleep(0.5)
        finally:
            ending.set()
        answered = [job_id for client in clients for job_id in client.result()]
    try:
        records = {
            name.decode().rpartition(":")[2] for name in redis.scan_iter(redis_keys.job("*"))
        }
        assert len(answered) == len(set(answered)) > 0
        assert records == set(answered), "one job for each key, and none besides"
        waiting = [job_id.decode() for job_id in redis.lrange("rq:queue:imageprompt", 0, -1)]
        assert sorted(waiting) == sorted(answered)
        for job_id in answered:
            assert (tmp_path / "storage" / "uploads" / job_id / "image-0.png").stat().st_size > 0
    finally:
        api.running.stop()


def test_told_to_stop_it_answers_who_waits_and_ends_with_0(api: RestartedApi, redis: Redis) -> None:
    url = api.running.url
    following = threading.Event()

    def wait() -> int:
        headers = {"prefer": "wait=50"}
        return httpx.post(f"{url}/generate", files=FILES, headers=headers, timeout=60).status_code

    def follow() -> int:
        job_id = httpx.post(f"{url}/generate", files=FILES, timeout=60).json()["id"]
        with httpx.stream("GET", f"{url}/jobs/{job_id}/events", timeout=60) as stream:
            for _ in stream.iter_lines():
                following.set()
            return stream.status_code

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(each) for each in (wait, follow)]
        until(lambda: len(list(redis.scan_iter(redis_keys.job("*")))) == 2, what="both jobs")
        until(following.is_set, what="the first event")
        assert api.running.stop() == 0
        assert sorted(client.result() for client in clients) == [200, 202]


def test_rubbish_in_redis_is_no_code_and_no_leak(
    api: RestartedApi, redis: Redis, tmp_path: Path
) -> None:
    """A pickle where a record should be costs this job alone, without a word of it."""
    trap = tmp_path / "owned"
    code = f"cos\nsystem\n(S'touch {trap}'\ntR.".encode()
    try:
        for rubbish in (code, b"\x80\x04\x95secret", b"{"):
            job_id = str(uuid.uuid4())
            redis.hset(
                redis_keys.job(job_id),
                mapping={
                    "owner": "anonymous",
                    "status": "queued",
                    "id": job_id,
                    "created_at": 1,
                    "request": rubbish,
                },
            )
            answer = httpx.get(f"{api.running.url}/jobs/{job_id}", timeout=60)
            assert answer.status_code == 410
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "urn:imageprompt:error:gone"
            for secret in ("secret", "system", "pydantic", "Error", "/", "validation"):
                assert secret not in answer.json()["detail"]
        assert not trap.exists()
        assert httpx.get(f"{api.running.url}/healthz/live", timeout=60).status_code == 200
    finally:
        api.running.stop()


def test_a_storm_of_hostile_uploads_leaves_nothing(
    api: RestartedApi, redis: Redis, tmp_path: Path
) -> None:
    try:
        outcome = hostile.storm(api.running, redis, tmp_path / "storage", cases=150)
        assert outcome.leftovers == 0
        assert outcome.resident_after - outcome.resident_before < 40 * 1024
        assert httpx.get(f"{api.running.url}/healthz/live", timeout=60).is_success
    finally:
        api.running.stop()


def test_slow_pipelining_and_stalling_clients_keep_an_honest_one_served(
    api: RestartedApi, redis: Redis, tmp_path: Path
) -> None:
    """`python -m tests.hostile` does it for longer, and holds times."""
    try:
        siege = hostile_clients.besiege(api.running, seconds=4, clients=24, quiet_seconds=0)
        assert len(siege.connections) > len(hostile_clients.DEEDS) / 2
        assert siege.all_answered
        assert siege.resident_most_kib < hostile.MOST_MIB * 1024
        jobs = {name.rpartition(b":")[2].decode() for name in redis.scan_iter(redis_keys.job("*"))}
        stored = {path.name for path in (tmp_path / "storage" / "uploads").glob("*")}
        assert stored <= jobs
    finally:
        api.running.stop()
