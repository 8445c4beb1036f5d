"""A key that is revoked while its requests wait: they are refused, and nothing is delivered."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service import api_keys
from tests.running import until
from tests.service.conftest import PNG, Api

WAIT = {"prefer": "wait=60"}
WAITING: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "job": lambda client, job: client.get(f"/jobs/{job}", headers=WAIT),
    "known job": lambda client, job: client.get(
        f"/jobs/{job}",
        headers=WAIT | {"if-none-match": client.get(f"/jobs/{job}").headers["etag"]},
    ),
    "generate": lambda client, _: client.post(
        "/generate", files={"image": ("a", PNG)}, headers=WAIT
    ),
    "picture": lambda client, _: client.post(
        "/generate", files={"image": ("a", PNG)}, headers=WAIT | {"accept": "image/png"}
    ),
    "openai": lambda client, _: client.post("/v1/images/generations", json={"prompt": "x"}),
    "openai stream": lambda client, _: client.post(
        "/v1/images/generations", json={"prompt": "x", "stream": True}
    ),
    "hugging face": lambda client, _: client.post("/hf/shapes", json={"inputs": "x"}),
    "replicate": lambda client, _: client.post(
        "/v1/predictions",
        json={"version": "imageprompt/shapes", "input": {"prompt": "x"}},
        headers=WAIT,
    ),
}


@pytest.fixture
def key(api: Api) -> Iterator[tuple[str, str]]:
    """A key and its id, beside one that stays."""
    made = [api_keys.make_key(name, now=time.time()) for name in ("goes", "stays")]
    for _, record in made:
        api_keys.save(api.redis, record)
    until(lambda: api.client.get("/jobs").status_code == 401, what="the need of a key")
    yield made[0][0], made[0][1].id
    for _, record in made:
        api_keys.revoke(api.redis, record.id)
    until(lambda: api.client.get("/jobs").status_code == 200, what="the end of that need")


def test_what_waits_is_refused_once_its_key_is_revoked(api: Api, key: tuple[str, str]) -> None:
    text, key_id = key
    headers = {"authorization": f"Bearer {text}"}
    with (
        httpx.Client(base_url=api.running.url, timeout=120, headers=headers) as client,
        ThreadPoolExecutor(len(WAITING)) as threads,
    ):
        job = client.post("/generate", files={"image": ("a", PNG)}).json()["id"]
        before = api.redis.info("clients")["blocked_clients"]
        asked = {name: threads.submit(ask, client, job) for name, ask in WAITING.items()}
        most = before + len(WAITING)
        until(lambda: api.redis.info("clients")["blocked_clients"] >= most, what="all to wait")
        assert api_keys.revoke(api.redis, key_id)
        answers = {name: one.result(60) for name, one in asked.items()}
    stream = answers.pop("openai stream")
    assert "event: error" in stream.text
    assert "authentication_error" in stream.text
    assert {name: one.status_code for name, one in answers.items()} == dict.fromkeys(answers, 401)
