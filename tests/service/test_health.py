"""Live, ready, figures, models, and how the API bears the absence of its dependencies."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.cli.processes import RedisServer
from service.core import redis_keys
from service.core.settings import Settings
from service.core.storage import Storage
from service.periodic import StorageProbe
from tests.deploy import exposition
from tests.proxy import Mode, Proxy
from tests.running import KEEP, Running, redis_client, until
from tests.service.conftest import PNG, Api, problem


def test_ready_needs_a_warm_worker(api: Api) -> None:
    api.redis.delete("imageprompt:workers")
    answer = api.client.get("/healthz/ready")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "redis": True, "storage": True, "workers": 0}


@pytest.mark.usefixtures("warm_worker")
def test_ready_when_all_is_there(api: Api) -> None:
    answer = api.client.get("/healthz/ready")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)


def test_the_storage_is_asked_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.from_settings(Settings(storage_url=tmp_path.as_uri()))
    asked = []
    check = storage.check
    monkeypatch.setattr(Storage, "check", lambda _: (asked.append(1), check()))

    async def run() -> list[bool]:
        probe = StorageProbe(storage)
        return list(await asyncio.gather(*(probe.answers() for _ in range(20))))

    assert asyncio.run(run()) == [True] * 20
    assert len(asked) < 20, "an answer serves all that ask within a second"


OF_REDIS = {
    "imageprompt_queue_jobs",
    "imageprompt_running_jobs",
    "imageprompt_queue_oldest_seconds",
    "imageprompt_workers_ready",
    "imageprompt_webhook_outbox",
}


def figure(client: httpx.Client, name: str) -> float:
    """The value of one line of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    [value] = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")]
    return float(value)


@pytest.mark.usefixtures("warm_worker")
def test_figures_have_the_values_that_redis_has(api: Api) -> None:
    api.redis.delete("rq:queue:imageprompt", redis_keys.OUTBOX)
    job_id = api.job()
    api.redis.hset(redis_keys.job(job_id), "created_at", time.time() - 500)
    api.redis.zadd(redis_keys.OUTBOX, {"one": time.time() + 900, "two": time.time() + 900})
    try:
        until(lambda: figure(api.client, "imageprompt_queue_oldest_seconds") >= 500)
        assert figure(api.client, "imageprompt_queue_oldest_seconds") < 700
        assert figure(api.client, "imageprompt_queue_jobs") == 1
        assert figure(api.client, "imageprompt_workers_ready") == 1
        assert figure(api.client, "imageprompt_webhook_outbox") == 2
    finally:
        api.redis.delete(redis_keys.OUTBOX)
    assert api.client.delete(f"/jobs/{job_id}").status_code == 204
    until(lambda: figure(api.client, "imageprompt_queue_oldest_seconds") == 0)


def test_a_job_that_ends_in_the_queue_is_counted_once(api: Api) -> None:
    names = [
        f'imageprompt_jobs_total{{model="shapes",status="{status}"}}'
        for status in ("canceled", "expired")
    ]
    before = [figure(api.client, name) for name in names]
    canceled, late = api.job(), api.job()
    for _ in range(2):
        assert api.client.post(f"/jobs/{canceled}/cancel").json()["status"] == "canceled"
    assert api.client.delete(f"/jobs/{canceled}").status_code == 204
    api.redis.zadd(redis_keys.DEADLINES, {late: 1})  # the API looks every second
    until(lambda: api.client.get(f"/jobs/{late}").json()["status"] == "expired")
    until(lambda: figure(api.client, names[1]) > before[1])
    assert [figure(api.client, name) for name in names] == [count + 1 for count in before]


def test_a_silent_redis_delays_no_scrape_and_leaves_no_figure(
    make_api: Callable[..., Running], tmp_path: Path
) -> None:
    """Prometheus waits 5 s; 0, or what was read once, would tell KEDA that no job is there."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    proxy = Proxy(f"redis://127.0.0.1:{server.port}")
    settings = {
        "redis_url": proxy.url.replace("http", "redis"),
        "storage_url": (tmp_path / "storage").as_uri(),
    }
    try:
        with make_api(**settings) as running, httpx.Client(base_url=running.url) as client:
            page = client.get("/metrics", timeout=60).text
            assert exposition.exposed([page]).keys() >= OF_REDIS
            proxy.mode = Mode.HANG
            time.sleep(1)  # older than a snapshot of the queue may be
            began = time.monotonic()
            page = client.get("/metrics", timeout=60).text
            assert time.monotonic() - began < 5
            there = exposition.exposed([page]).keys()
            assert "imageprompt_uploaded_bytes_total" in there
            assert not there & OF_REDIS
            proxy.mode = Mode.PASS
            until(lambda: exposition.exposed([client.get("/metrics").text]).keys() >= OF_REDIS)
    finally:
        proxy.close()
        server.stop()


def test_figures_tell_of_the_queue(api: Api) -> None:
    api.redis.delete("rq:queue:imageprompt")
    api.job()
    until(lambda: "imageprompt_queue_jobs 1.0" in api.client.get("/metrics").text)
    text = api.client.get("/metrics").text
    assert 'imageprompt_jobs_accepted_total{model="shapes"}' in text
    assert 'route="/generate"' in text
    assert "imageprompt_queue_oldest_seconds" in text


def test_unknown_paths_make_no_new_series(api: Api) -> None:
    for number in range(5):
        problem(api.client.get(f"/nothing/{number}"), 404)
    assert "nothing" not in api.client.get("/metrics").text


def test_models_tell_names_and_limits_but_no_paths(api: Api) -> None:
    answer = api.client.get("/models")
    models = answer.json()
    assert models["default"] == "shapes"
    [shapes] = models["models"]
    assert (shapes["adapters"], shapes["controlnets"]) == (["base", "plus"], ["outline", "area"])
    assert (shapes["t2i_adapters"], shapes["loras"]) == (["sketch"], ["dots", "hollow"])
    assert shapes["defaults"]["width"] == 128
    assert "path" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("PUT", "/jobs", 405),
        ("GET", "/jobs?limit=0", 422),
        ("GET", "/jobs?limit=x", 422),
        ("GET", "/nothing", 404),
        ("POST", "/models", 405),
    ],
)
def test_every_error_is_a_problem_document(api: Api, method: str, path: str, status: int) -> None:
    answer = api.client.request(method, path)
    problem(answer, status)
    assert status != 405 or answer.headers["allow"]


def test_without_redis_it_lives_refuses_and_recovers(
    make_api: Callable[..., Running], tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis")
    settings = {
        "redis_url": f"redis://127.0.0.1:{server.port}/0",
        "storage_url": (tmp_path / "storage").as_uri(),
    }
    files = {"image": ("a", PNG)}
    with (
        make_api(**settings) as running,
        httpx.Client(base_url=running.url, timeout=60, limits=KEEP) as client,
    ):
        ready = client.get("/healthz/ready")
        assert (ready.status_code, ready.json()["redis"]) == (503, False)
        assert not exposition.exposed([client.get("/metrics").text]).keys() & OF_REDIS
        for answer in (client.post("/generate", files=files), client.get("/jobs")):
            assert int(answer.headers["retry-after"]) > 0
            problem(answer, 503)
        failed = 'imageprompt_http_requests_total{method="POST",route="/generate",status="5xx"}'
        assert figure(client, failed) == 1
        assert not list((tmp_path / "storage").rglob("*.png"))
        server.start()
        try:
            answer = until(lambda: (a := client.post("/generate", files=files)).is_success and a)
            job = f"/jobs/{answer.json()['id']}"
            server.stop()
            problem(client.get(job), 503)
            server.start()
            until(lambda: client.get(job).is_success)
        finally:
            server.stop()


def test_without_storage_no_job_comes_to_be(
    make_api: Callable[..., Running], redis_url: str
) -> None:
    settings = {
        "redis_url": redis_url,
        "storage_url": "s3://bucket/prefix",
        "storage_endpoint": "http://127.0.0.1:9",
        "storage_access_key_id": "x",
        "storage_secret_access_key": "x",
        "AWS_REGION": "us-east-1",
    }
    with (
        make_api(**settings) as running,
        httpx.Client(base_url=running.url, timeout=60, limits=KEEP) as client,
    ):
        assert client.get("/healthz/live").status_code == 200
        assert client.get("/healthz/ready").json()["storage"] is False
        answer = client.post("/generate", files={"image": ("a", PNG)})
        assert int(answer.headers["retry-after"]) > 0
        problem(answer, 503)
    with redis_client(redis_url) as redis:
        assert not list(redis.scan_iter(redis_keys.job("*")))
