"""The same Idempotency-Key is the same job, however often and however fast it is sent."""

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis.asyncio as aioredis

from service.core import redis_keys
from service.core.errors import IdempotencyInProgress
from service.submission import idempotency
from tests import corpus
from tests.service.conftest import PNG, Api, problem


def key() -> dict[str, str]:
    """Headers with a key that nobody has used."""
    return {"idempotency-key": uuid.uuid4().hex}


def test_the_same_request_again_is_the_same_job(api: Api) -> None:
    headers = key()
    first = api.post({"steps": 5}, headers=headers)
    before = api.leftovers()
    again = api.post({"steps": "05"}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["input"] == first.json()["input"], "with the seed that was drawn"
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (
        None,
        "true",
    )
    assert api.leftovers() == before


@pytest.mark.parametrize("change", ["field", "bytes", "name"])
def test_another_body_is_refused(api: Api, change: str) -> None:
    headers = key()
    api.post({"steps": 5}, headers=headers)
    other = corpus.saved(corpus.picture(1), "PNG")
    before = api.leftovers()
    if change == "field":
        answer = api.post({"steps": 6}, headers=headers)
    elif change == "bytes":
        answer = api.post({"steps": 5}, headers=headers, files=[("image", ("a.png", other))])
    else:
        files = [("image", ("a.png", PNG)), ("control_image", ("a.png", PNG))]
        answer = api.post({"steps": 5}, headers=headers, files=files)
    assert problem(answer, 422)["type"] == "urn:imageprompt:error:idempotency-mismatch"
    assert api.leftovers() == before


def test_fifty_at_once_are_one_job(api: Api) -> None:
    headers = key()
    queued = api.redis.llen("rq:queue:imageprompt")

    def send(_: int) -> httpx.Response:
        while True:
            answer = httpx.post(
                f"{api.running.url}/generate",
                files={"image": ("a", PNG)},
                headers=headers,
                timeout=60,
            )
            if answer.status_code != 409:
                return answer
            assert int(answer.headers["retry-after"]) >= 1
            time.sleep(0.1)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(send, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    [job_id] = {answer.json()["id"] for answer in answers}
    assert api.redis.llen("rq:queue:imageprompt") == queued + 1
    assert [path.name for path in (api.folder / "uploads" / job_id).iterdir()] == ["image-0.png"]


def test_a_request_that_was_refused_leaves_its_key_free(api: Api) -> None:
    headers = key()
    before = api.leftovers()
    problem(api.post({"steps": 0}, headers=headers), 422)
    problem(api.post(headers=headers, files=[("image", ("a", b"GIF89a"))]), 415)
    assert api.leftovers() == before
    assert api.post(headers=headers).status_code == 202


def test_after_a_crash_while_taking_in_the_key_can_be_used_again(api: Api) -> None:
    """What a killed API leaves is the mark alone; it goes by itself."""
    headers = key()
    job_id = api.post(headers=headers).json()["id"]
    [mark] = [
        name
        for name in api.redis.scan_iter(redis_keys.idempotency("anonymous", "*"))
        if api.redis.hget(name, "job") == job_id.encode()
    ]
    api.redis.hdel(mark, "job")
    api.redis.hset(mark, "token", "of the dead process")
    problem(api.post(headers=headers), 409)
    assert api.redis.ttl(mark) > 0
    api.redis.delete(mark)
    assert api.post(headers=headers).status_code == 202


def test_a_key_is_its_owners_own_and_must_be_readable(api: Api) -> None:
    for wrong in ("", "x" * 256, "a b"):
        body = problem(api.post(headers={"idempotency-key": wrong}), 422)
        assert body["errors"][0]["field"] == "Idempotency-Key"
    headers = key()
    api.post(headers=headers)
    names = list(api.redis.scan_iter(redis_keys.idempotency("anonymous", "*")))
    assert not any(headers["idempotency-key"].encode() in name for name in names)


def test_a_key_whose_job_was_deleted_makes_no_new_one(api: Api) -> None:
    headers = key()
    job_id = api.post(headers=headers).json()["id"]
    api.client.delete(f"/jobs/{job_id}")
    problem(api.post(headers=headers), 410)
    held = headers | {"prefer": "wait=60"}
    problem(api.post(headers=held, timeout=30), 410)  # there is nothing to wait for


def test_a_key_stays_taken_however_long_the_first_request_takes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PENDING_SECONDS", 1)

    async def run() -> None:
        client = aioredis.Redis.from_url(redis_url, decode_responses=True)
        marks = idempotency.Idempotency(client, kept_seconds=60)
        mark = await marks.begin("me", "key", "body")
        assert isinstance(mark, idempotency.IdempotencyClaim)
        async with marks.kept(mark):
            await asyncio.sleep(2.5)
            with pytest.raises(IdempotencyInProgress):
                await marks.begin("me", "key", "body")
        await marks.renew(mark)
        await client.aclose()

    asyncio.run(run())


def test_the_second_request_may_wait_for_the_first_ones_job(api: Api) -> None:
    headers = key()
    job_id = api.post(headers=headers).json()["id"]
    api.finish(job_id)
    answer = api.post(headers=headers | {"prefer": "wait=5"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
