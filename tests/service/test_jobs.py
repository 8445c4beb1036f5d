"""The job resource: what a client sees of its job from the queue to the end, and after it."""

import re
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from redis import Redis

from service.core import redis_keys
from service.core.errors import EngineFault
from service.core.job import JobError, JobMetrics, Status
from service.core.transitions import Step
from service.jobs.store import POSITIONS_SEARCHED
from tests.running import Running
from tests.service.conftest import PNG, Api, announce_warm, problem


def get(api: Api, job_id: str) -> dict[str, object]:
    """The job as its client sees it."""
    answer = api.client.get(f"/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_job_is_seen_from_the_queue_to_its_pictures(api: Api) -> None:
    job_id = api.job({"steps": 10})
    assert get(api, job_id)["status"] == "queued"
    claim = api.claim(job_id)
    api.transitions.progress([Step(claim, 4, 10)])
    running = get(api, job_id)
    assert (running["status"], running["queue_position"]) == ("processing", None)
    assert running["progress"] == {"step": 4, "total": 10}
    assert datetime.fromisoformat(str(running["started_at"])).tzinfo is not None
    assert api.transitions.hand_back(claim)
    api.finish(job_id, images=2)
    done = api.client.get(f"/jobs/{job_id}")
    assert "retry-after" not in done.headers
    job = done.json()
    assert (job["status"], job["metrics"]["total_seconds"], job["error"]) == ("succeeded", 1, None)
    assert [image["seed"] for image in job["images"]] == [7, 8]
    assert job["images"][1]["url"] == f"{api.running.url}/jobs/{job_id}/images/1"
    names = ("created_at", "started_at", "completed_at", "expires_at")
    created, started, completed, expires = (datetime.fromisoformat(job[name]) for name in names)
    assert created <= started <= completed < expires


def test_a_failed_job_says_why(api: Api) -> None:
    job_id = api.job()
    error = JobError(type=EngineFault("x").type, title=EngineFault.title, detail="No luck")
    api.transitions.fail(api.claim(job_id), error, JobMetrics())
    assert get(api, job_id)["error"] == {
        "type": "urn:imageprompt:error:engine-fault",
        "title": "Internal failure",
        "detail": "No luck",
    }


@pytest.mark.usefixtures("warm_worker")
def test_position_and_estimate_count_the_work_ahead(api: Api) -> None:
    api.redis.delete("rq:queue:imageprompt")
    jobs = [api.job({"steps": 20, "guidance_scale": 1}) for _ in range(8)]
    time.sleep(0.6)  # until the snapshot of the queue is taken anew
    asked = time.monotonic()
    shown = [get(api, job_id) for job_id in jobs]
    took = time.monotonic() - asked  # what is told is counted from within it
    assert [job["queue_position"] for job in shown] == list(range(8))
    first, second = shown[0]["eta_seconds"], shown[7]["eta_seconds"]
    # The worker of the fixture holds four jobs, at 20 row steps a second.
    assert 4 - took <= float(str(first)) <= 6
    assert 8 - took <= float(str(second)) <= 12
    answer = api.client.get(f"/jobs/{jobs[7]}")
    assert int(answer.headers["retry-after"]) >= answer.json()["eta_seconds"]


def test_canceling_twice_or_after_the_end_changes_nothing(api: Api) -> None:
    job_id = api.job()
    first = api.client.post(f"/jobs/{job_id}/cancel").json()
    assert first["status"] == "canceled"
    assert api.client.post(f"/jobs/{job_id}/cancel").json() == first
    assert job_id.encode() not in api.redis.lrange("rq:queue:imageprompt", 0, -1)
    done = api.job()
    api.finish(done)
    assert api.client.post(f"/jobs/{done}/cancel").json()["status"] == "succeeded"


def test_a_running_job_is_canceled_and_its_worker_is_told(api: Api) -> None:
    job_id = api.job()
    claim = api.claim(job_id)
    assert api.client.post(f"/jobs/{job_id}/cancel").json()["status"] == "canceled"
    assert api.transitions.progress([Step(claim, 5, 30)]) == [False]
    assert not api.transitions.succeed(claim, (), JobMetrics(), 30)


@pytest.mark.parametrize(
    "job_id", ["5b1f0b0e-9d3c-4a53-8f0e-2f6f3b1c7a10", "nope", "..%2f..", "x" * 300]
)
def test_an_unknown_job_is_404_on_every_path(api: Api, job_id: str) -> None:
    for method, path in (
        ("GET", ""),
        ("POST", "/cancel"),
        ("GET", "/events"),
        ("GET", "/images/0"),
    ):
        problem(api.client.request(method, f"/jobs/{job_id}{path}"), 404)


def test_a_job_of_another_owner_does_not_exist(api: Api) -> None:
    job_id = api.job()
    api.redis.hset(redis_keys.job(job_id), "owner", "somebody")
    unknown = problem(api.client.get(f"/jobs/{uuid.uuid4()}"), 404)
    theirs = problem(api.client.get(f"/jobs/{job_id}"), 404)
    assert theirs["detail"] == unknown["detail"]
    assert api.client.post(f"/jobs/{job_id}/cancel").status_code == 404
    assert api.redis.hget(redis_keys.job(job_id), "status") == b"queued"


def test_an_expired_job_is_410_and_later_404(api: Api) -> None:
    job_id = api.job()
    api.finish(job_id)
    api.redis.hset(redis_keys.job(job_id), "expires_at", time.time() - 1)
    problem(api.client.get(f"/jobs/{job_id}"), 410)
    problem(api.client.get(f"/jobs/{job_id}/images/0"), 410)
    assert job_id not in api.client.get("/jobs?limit=100").text
    api.redis.delete(redis_keys.job(job_id))
    problem(api.client.get(f"/jobs/{job_id}"), 410)
    problem(api.client.delete(f"/jobs/{job_id}"), 410)
    api.redis.delete(redis_keys.tombstone(job_id))
    problem(api.client.get(f"/jobs/{job_id}"), 404)


def test_a_picture_comes_with_what_a_browser_must_know(api: Api) -> None:
    job_id = api.job()
    problem(api.client.get(f"/jobs/{job_id}/images/0"), 404)
    api.finish(job_id)
    answer = api.client.get(f"/jobs/{job_id}/images/0")
    assert answer.content == PNG
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert f'filename="{job_id}-0.png"' in answer.headers["content-disposition"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    etag = answer.headers["etag"]
    again = api.client.get(f"/jobs/{job_id}/images/0", headers={"if-none-match": f'"x", {etag}'})
    assert (again.status_code, again.content) == (304, b"")
    any_is_known = api.client.get(f"/jobs/{job_id}/images/0", headers={"if-none-match": "*"})
    assert any_is_known.status_code == 304
    problem(api.client.get(f"/jobs/{job_id}/images/1"), 404)
    problem(api.client.get(f"/jobs/{job_id}/images/9"), 422)


def test_a_picture_that_the_storage_lost_is_410(api: Api) -> None:
    job_id = api.job()
    api.finish(job_id)
    api.storage.delete_folder(f"results/{job_id}")
    problem(api.client.get(f"/jobs/{job_id}/images/0"), 410)


def test_jobs_are_listed_newest_first_page_by_page(api: Api) -> None:
    api.redis.delete(redis_keys.owner_jobs("anonymous"))
    jobs = [api.job() for _ in range(5)]
    seen: list[str] = []
    url: str | None = "/jobs?limit=2"
    pages = 0
    while url is not None:
        page = api.client.get(url).json()
        seen += [job["id"] for job in page["jobs"]]
        url = page["next"]
        pages += 1
    assert (seen, pages) == (jobs[::-1], 3)


@pytest.mark.parametrize(
    "cursor", ["x", "e30", "WzEsMl0", "%00", "WyJ4IiwgMV0", "bnVsbA", "W1tb" * 2000]
)
def test_a_foreign_cursor_is_422(api: Api, cursor: str) -> None:
    body = problem(api.client.get(f"/jobs?cursor={cursor}"), 422)
    assert body["errors"] == [{"field": "cursor", "message": "is not a valid cursor"}]


def test_a_full_queue_lets_nobody_in_and_tells_an_honest_time(
    make_api: Callable[..., Running],
    redis_url: str,
    redis: Redis,
    storage_url: str,
    tmp_path: Path,
) -> None:
    announce_warm(redis, row_steps_per_second=1.0)

    def send(number: int) -> httpx.Response:
        return httpx.post(
            f"{running.url}/generate",
            files={"image": ("a", PNG)},
            data={"steps": "40", "guidance_scale": "1"},
            headers={"idempotency-key": f"key-{number}"} if number % 2 else {},
            timeout=120,
        )

    settings = {"redis_url": redis_url, "storage_url": storage_url, "max_queued_jobs": 2}
    with make_api(**settings) as running, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(send, range(40)))
        last = send(41)
    accepted = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    refused = [last, *(answer for answer in answers if answer.status_code != 202)]
    assert (len(accepted), len(refused)) == (2, 39)
    for answer in refused:
        assert problem(answer, 503)["type"] == "urn:imageprompt:error:queue-full"
    # A step takes the worker 2 s with one job of 40 steps, 3 s with two of them.
    assert 80 <= int(last.headers["retry-after"]) <= 120
    uploads = {path.name for path in (tmp_path / "storage" / "uploads").iterdir()}
    assert uploads == accepted, "who is refused leaves nothing"
    records = {name.decode() for name in redis.keys(redis_keys.job("*"))}
    assert records == {redis_keys.job(job_id) for job_id in accepted}
    marks = redis.keys(redis_keys.idempotency("*", "*"))
    assert all(redis.hget(mark, "job").decode() in accepted for mark in marks)


def test_links_follow_the_name_that_the_client_used(api: Api) -> None:
    job_id = api.job()
    answer = api.client.get(f"/jobs/{job_id}", headers={"host": "pictures:8000"})
    assert re.match(r"http://pictures:8000/jobs/", answer.json()["urls"]["self"])


def test_status_is_final_once(api: Api) -> None:
    job_id = api.job()
    api.finish(job_id)
    assert api.transitions.cancel(job_id) is Status.SUCCEEDED


def test_a_picture_that_is_damaged_in_storage_is_not_served(api: Api) -> None:
    """Neither a part of it nor other bytes of its length."""
    job_id = api.job()
    api.finish(job_id)
    assert api.client.get(f"/jobs/{job_id}/images/0").content == PNG
    for damaged in (PNG[:-9], PNG[:-1] + b"x"):
        api.storage.put(redis_keys.result(job_id, "0.png"), damaged, "image/png")
        detail = problem(api.client.get(f"/jobs/{job_id}/images/0"), 410)["detail"]
        assert "damaged" in str(detail)


def test_positions_near_both_ends_of_a_long_queue_are_exact(api: Api) -> None:
    queue, before = "rq:queue:imageprompt", 3 * POSITIONS_SEARCHED
    job_id = api.job()
    try:
        for ahead, shown in ((0, 0), (7, 7), (before // 2, (before + 10) // 2), (before, before)):
            api.redis.delete(queue)
            ids = [f"other-{number}" for number in range(before + 10)]
            ids[ahead] = job_id
            api.redis.rpush(queue, *ids)
            job = api.client.get(f"/jobs/{job_id}").json()
            assert job["queue_position"] == shown
            assert api.client.get("/jobs?limit=1").json()["jobs"][0]["queue_position"] == shown
    finally:
        api.redis.delete(queue)
        api.client.delete(f"/jobs/{job_id}")


@pytest.mark.parametrize("number", ["1_0", "\u0660", "\uff10"])
def test_numbers_of_a_url_are_plain_decimal_digits(api: Api, number: str) -> None:
    for path in (f"/jobs/x/images/{number}", f"/jobs/x/maps/{number}", f"/jobs?limit={number}"):
        problem(api.client.get(path), 422)
