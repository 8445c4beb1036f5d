"""Signed URLs give access to one picture or event stream, for some time, without an API key."""

import asyncio
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import redis.asyncio as aioredis
from redis import Redis

from service import api_keys
from service.core import redis_keys
from service.core.errors import Unauthorized
from service.signed_urls import CACHE_SECONDS, ROTATION_SECONDS, SignedUrls
from tests.running import Running, until
from tests.service.conftest import PNG, Api, problem, sse


@pytest.fixture
def key(api: Api) -> Iterator[tuple[str, str]]:
    """A key and its id; while it exists, callers without one are refused."""
    text, record = api_keys.make_key("x", now=time.time())
    api_keys.save(api.redis, record)
    until(lambda: api.client.get("/jobs").status_code == 401, what="the need of a key")
    yield text, record.id
    for left in api_keys.list_keys(api.redis):
        api_keys.revoke(api.redis, left.id)
    until(lambda: api.client.get("/jobs").status_code == 200, what="the end of that need")


def finished(api: Api, key: str) -> dict[str, object]:
    """A job of the key's that has ended, as its owner sees it."""
    bearer = {"authorization": f"Bearer {key}"}
    answer = api.client.post("/generate", files={"image": ("a", PNG)}, headers=bearer)
    assert answer.status_code == 202, answer.text
    api.finish(answer.json()["id"])
    return dict(api.client.get(f"/jobs/{answer.json()['id']}", headers=bearer).json())


def test_pictures_and_events_need_no_key_with_a_signed_url(api: Api, key: tuple[str, str]) -> None:
    job, other = finished(api, key[0]), finished(api, key[0])
    picture, events = job["images"][0]["url"], job["urls"]["events"]
    assert httpx.get(picture).content == PNG
    assert [name for _, name, _ in sse(httpx.get(events).text)][-1] == "done"
    again = api.client.get(f"/jobs/{job['id']}", headers={"authorization": f"Bearer {key[0]}"})
    assert again.json()["images"] == job["images"], "the same URL, so that browsers cache it"
    bare = picture.partition("?")[0]
    problem(httpx.get(bare), 401)
    query = parse_qs(urlsplit(picture).query)
    expires = int(query["expires"][0])
    assert 3600 <= expires - time.time() <= 2 * 3600
    wrong = [
        picture.replace(str(expires), str(expires + 1)),
        picture[:-1] + ("A" if picture[-1] != "A" else "B"),
        picture.replace(f"key={key[1]}", "key=000000000000"),
        picture.replace("signature=", "signature=x"),
        picture.replace(f"expires={expires}", "expires=" + "9" * 400),
        picture.replace(f"expires={expires}", "expires=-1"),
        picture.replace("/images/0", "/images/1"),
        f"{bare}?{urlsplit(other['images'][0]['url']).query}",
        f"{bare}?{urlsplit(events).query}",
        f"{bare}?signature=",
        picture.rpartition(".")[0] + ".\xe9",
        picture.rpartition(".")[0] + ".%ff",
        picture.replace(f"key={key[1]}", "key=\xe9"),
    ]
    for url in wrong:
        problem(httpx.get(url), 401)
    for path in (f"/jobs/{job['id']}", "/jobs"):  # nothing but pictures and events
        problem(api.client.get(f"{path}?{urlsplit(picture).query}"), 401)


def test_a_revoked_key_ends_its_urls_and_its_open_streams(api: Api, key: tuple[str, str]) -> None:
    job = finished(api, key[0])
    bearer = {"authorization": f"Bearer {key[0]}"}
    running = api.client.post("/generate", files={"image": ("a", PNG)}, headers=bearer).json()
    another, record = api_keys.make_key("stays", now=time.time())
    api_keys.save(api.redis, record)
    with httpx.stream("GET", running["urls"]["events"], timeout=60) as stream:
        lines = stream.iter_lines()
        assert "event: status" in lines
        assert api_keys.revoke(api.redis, key[1])
        assert "event: done" not in list(lines), "it ends without the job's end"
    assert another
    problem(httpx.get(job["images"][0]["url"]), 401)


class Clock:
    """A clock that a test sets."""

    now = 1_000_000.0

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now


def test_urls_expire(redis_url: str) -> None:
    async def run() -> None:
        clock = Clock()
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        urls = SignedUrls(client, lifetime_seconds=600, clock=clock)
        query = {
            name: values[0]
            for name, values in parse_qs((await urls.signer("k")).sign("jobs/1/events")[1:]).items()
        }
        assert await urls.verify("jobs/1/events", query) == "k"
        clock.now += 601
        assert await urls.verify("jobs/1/events", query) == "k", "valid for at least 600 s"
        clock.now += 600
        with pytest.raises(Unauthorized):
            await urls.verify("jobs/1/events", query)
        await client.aclose()

    asyncio.run(run())


def test_secrets_are_shared_and_replaced(redis_url: str, redis: Redis) -> None:
    async def run() -> None:
        clock = Clock()
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        one, two = (SignedUrls(client, lifetime_seconds=600, clock=clock) for _ in range(2))
        query = {
            name: values[0]
            for name, values in parse_qs((await one.signer("k")).sign("p")[1:]).items()
        }
        assert await two.verify("p", query) == "k"
        [(name, text)] = redis.hgetall(redis_keys.URL_SECRETS).items()
        created, secret = text.split()
        redis.hset(
            redis_keys.URL_SECRETS, name, b"%d %s" % (int(created) - ROTATION_SECONDS - 1, secret)
        )
        clock.now += CACHE_SECONDS + 1
        new = (await one.signer("k")).secret_id
        assert new != name.decode()
        assert await one.verify("p", query) == "k", "URLs of the last secret stay valid"
        redis.hset(
            redis_keys.URL_SECRETS, name, b"%d %s" % (int(created) - 2 * ROTATION_SECONDS, secret)
        )
        clock.now += CACHE_SECONDS + 1
        with pytest.raises(Unauthorized):
            await one.verify("p", query)
        await client.aclose()

    asyncio.run(run())


def test_urls_of_one_process_are_valid_at_another(
    api: Api, key: tuple[str, str], make_api: Callable[..., Running]
) -> None:
    job = finished(api, key[0])
    settings = {"redis_url": api.redis_url, "storage_url": api.folder.as_uri()}
    with make_api(**settings) as running:
        url = job["images"][0]["url"].replace(api.running.url, running.url)
        assert httpx.get(url).content == PNG
