"""Live, ready, figures, models, and how the API bears the absence of its dependencies."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.cli.redis_server import RedisServer
from tests.running import Running, until
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
    assert (shapes["adapters"], shapes["controlnets"]) == (["base", "plus"], ["outline"])
    assert shapes["defaults"]["width"] == 128
    assert "path" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("PUT", "/jobs", 405),
        ("GET", "/jobs?limit=0", 422),
        ("GET", "/jobs?limit=x", 422),
        ("GET", "/", 404),
        ("POST", "/models", 405),
    ],
)
def test_every_error_is_a_problem_document(api: Api, method: str, path: str, status: int) -> None:
    answer = api.client.request(method, path)
    problem(answer, status)
    assert status != 405 or answer.headers["allow"]


def test_the_docs_open_in_a_browser_without_the_network(api: Api) -> None:
    answer = api.client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "/generate" in answer.text
    assert "<script" not in answer.text
    assert "src=" not in answer.text
    assert api.client.get("/openapi.json").json()["openapi"].startswith("3.1")


def test_without_redis_it_lives_refuses_and_recovers(
    make_api: Callable[..., Running], tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis")
    settings = {
        "redis_url": f"redis://127.0.0.1:{server.port}/0",
        "storage_url": (tmp_path / "storage").as_uri(),
    }
    files = {"image": ("a", PNG)}
    with make_api(**settings) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        ready = client.get("/healthz/ready")
        assert (ready.status_code, ready.json()["redis"]) == (503, False)
        assert client.get("/metrics").status_code == 200
        for answer in (client.post("/generate", files=files), client.get("/jobs")):
            assert int(answer.headers["retry-after"]) > 0
            problem(answer, 503)
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
    with make_api(**settings) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        assert client.get("/healthz/live").status_code == 200
        assert client.get("/healthz/ready").json()["storage"] is False
        answer = client.post("/generate", files={"image": ("a", PNG)})
        assert int(answer.headers["retry-after"]) > 0
        problem(answer, 503)
        assert client.get("/jobs").json()["jobs"] == []
