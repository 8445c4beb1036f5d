"""Server-sent events: in order, resumable, and ended by `done`."""

import asyncio
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx

from service.core import redis_keys
from service.core.transitions import Step
from service.jobs.event_stream import LONGEST_PAUSE_SECONDS, Event, EventStreams, WaitPace
from tests.running import KEEP, Running, until
from tests.service.conftest import Api, problem, sse


def test_events_tell_the_whole_story_and_end_with_the_job(api: Api) -> None:
    job_id = api.job({"steps": 3})
    claim = api.claim(job_id)
    for step in (1, 2, 3):
        api.transitions.progress([Step(claim, step, 3)])
    api.transitions.preview(claim, {"image": "data:"})
    api.transitions.hand_back(claim)
    api.finish(job_id)
    answer = api.client.get(f"/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = sse(answer.text)
    assert [name for _, name, _ in events] == [
        "status",
        "status",
        "progress",
        "progress",
        "progress",
        "status",
        "status",
        "status",
        "done",
    ]
    assert events[3][2] == {"step": 2, "total": 3}
    assert events[-1][2]["id"] == job_id
    assert events[-1][2]["status"] == "succeeded"


def test_openais_clients_get_previews_while_the_job_runs(api: Api) -> None:
    before = set(api.redis.scan_iter(redis_keys.job("*")))
    data = {"prompt": "x", "stream": True, "partial_images": 1}
    with api.client.stream("POST", "/v1/images/generations", json=data) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        (key,) = set(api.redis.scan_iter(redis_keys.job("*"))) - before
        job_id = key.decode().rpartition(":")[2]
        api.transitions.preview(api.claim(job_id), {"data": "UHJldmlldw=="})
        assert json.loads(next(lines)[6:])["b64_json"] == "UHJldmlldw=="
        api.transitions.cancel(job_id)
        assert "error" in json.loads(next(lines)[6:])


def test_events_come_as_they_happen(api: Api) -> None:
    job_id = api.job()
    with api.client.stream("GET", f"/jobs/{job_id}/events") as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("event: "))
        assert next(lines) == "event: status"
        api.finish(job_id)
        assert list(lines) == ["event: status"] * 2 + ["event: done"]


def test_a_stream_resumes_after_the_last_event_seen(api: Api) -> None:
    job_id = api.job()
    api.finish(job_id)
    url = f"/jobs/{job_id}/events"
    events = sse(api.client.get(url).text)
    rest = sse(api.client.get(url, headers={"last-event-id": events[1][0]}).text)
    assert rest == events[2:]


def test_a_stream_resumed_after_the_last_event_ends_at_once(api: Api) -> None:
    job_id = api.job()
    api.finish(job_id)
    url = f"/jobs/{job_id}/events"
    last = sse(api.client.get(url).text)[-1]
    again = api.client.get(url, headers={"last-event-id": last[0]})
    assert (again.status_code, again.content) == (204, b""), "or an EventSource would come back"
    api.redis.delete(redis_keys.events(job_id))
    assert [name for _, name, _ in sse(api.client.get(url).text)] == ["done"]


def test_a_stream_that_missed_the_last_event_of_a_deleted_job_ends(api: Api) -> None:
    job_id = api.job()
    with api.client.stream("GET", f"/jobs/{job_id}/events") as answer:
        lines = answer.iter_lines()
        assert "event: status" in lines
        api.transitions.erase(job_id, "anonymous")
        assert not [line for line in lines if line.startswith("event: ")]


def test_a_stream_after_an_event_that_never_was_ends_with_its_job(api: Api) -> None:
    job_id = api.job()
    future = {"last-event-id": "9999999999999-0"}
    with api.client.stream("GET", f"/jobs/{job_id}/events", headers=future) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("event: "))
        api.finish(job_id)
        assert list(lines) == ["event: done"]


def test_a_wait_leaves_steps_unread_for_half_of_what_they_still_take() -> None:
    def progress(at_ms: int, step: int, total: int = 30) -> Event:
        return Event(f"{at_ms}-0", "progress", json.dumps({"step": step, "total": total}))

    pace, pauses = WaitPace(), []
    for event in (
        Event("5000-0", "status", '{"status": "running"}'),
        progress(5000, 1),  # nothing is known of its speed
        progress(5100, 2),
        progress(7600, 27),
        Event("7600-1", "progress", '{"step": Infinity, "total": []}'),
        progress(7600, 28, total=10**400),
        Event("7600-3", "progress", 100_000 * "["),
        progress(7800, 29),
        progress(7900, 30),
        progress(9000, 1),  # a second attempt
        progress(9010, 2),
    ):
        pace.observe(event)
        pauses.append(round(pace.pause_seconds, 3))
    longest = LONGEST_PAUSE_SECONDS
    assert pauses == [0, 0, longest, 0.15, 0.15, 0.15, 0.15, 0.05, 0, 0, 0.14]


def test_a_wait_reads_far_fewer_times_than_there_are_steps(api: Api) -> None:
    steps = 100
    job_id = api.job({"steps": steps})
    claim = api.claim(job_id)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            api.client.get, f"/jobs/{job_id}", headers={"prefer": "wait=60"}, timeout=90
        )
        until(lambda: _reads(api) >= 1)
        before = _reads(api)
        for step in range(1, steps + 1):
            api.transitions.progress([Step(claim, step, steps)])
            time.sleep(0.01)
        api.finish(job_id)
        assert waiting.result().json()["status"] == "succeeded"
    assert 0 < _reads(api) - before < 0.6 * steps


def _reads(api: Api) -> int:
    """How often an event stream of the whole Redis was read so far."""
    return int(api.redis.info("commandstats").get("cmdstat_xread", {"calls": 0})["calls"])


def test_who_waits_for_a_job_that_was_deleted_is_told(api: Api) -> None:
    """Every reader of events ends so, also those of the facades."""
    stopping = asyncio.Event()

    async def wait() -> bool | None:
        streams = EventStreams(api.redis_url, limit=2, stopping=stopping)
        try:
            return await streams.wait(str(uuid.uuid4()), 30, owner="a", check=_nothing)
        finally:
            await streams.close()

    assert asyncio.run(wait()) is True


def test_a_wrong_last_event_id_is_named(api: Api) -> None:
    job_id = api.job()
    answer = api.client.get(f"/jobs/{job_id}/events", headers={"last-event-id": "$"})
    assert problem(answer, 422)["errors"][0]["field"] == "last-event-id"


def test_streams_are_bounded_and_leave_room_for_the_rest(
    api: Api, make_api: Callable[..., Running], tmp_path: Path
) -> None:
    settings = {
        "redis_url": api.redis_url,
        "storage_url": tmp_path.as_uri(),
        "max_event_streams": 2,
    }
    job_id = api.job()
    with (
        make_api(**settings) as running,
        httpx.Client(base_url=running.url, timeout=60, limits=KEEP) as client,
    ):
        url = f"/jobs/{job_id}/events"
        with client.stream("GET", url) as one, client.stream("GET", url) as two:
            lines = one.iter_lines(), two.iter_lines()  # kept, for a dropped one hangs up
            assert [next(each) for each in lines] == ["retry: 2000"] * 2
            answer = client.get(url)
            assert int(answer.headers["retry-after"]) > 0
            problem(answer, 503)
            assert client.get(f"/jobs/{job_id}").status_code == 200
            waited = client.post(
                "/generate", headers={"prefer": "wait=5"}, files={"image": ("a", b"x")}
            )
            assert waited.status_code == 400


def test_a_burst_of_streams_does_not_pass_the_limit(
    api: Api, make_api: Callable[..., Running], tmp_path: Path
) -> None:
    settings = {
        "redis_url": api.redis_url,
        "storage_url": tmp_path.as_uri(),
        "max_event_streams": 2,
    }
    url = f"/jobs/{api.job()}/events"
    answered = threading.Barrier(12)
    with make_api(**settings) as running:

        def follow(_: int) -> int:
            with (
                httpx.Client(base_url=running.url, timeout=60) as client,
                client.stream("GET", url) as answer,
            ):
                answered.wait(60)
                return answer.status_code

        with ThreadPoolExecutor(12) as clients:
            statuses = sorted(clients.map(follow, range(12)))
    assert statuses == [200] * 2 + [503] * 10


def test_one_job_and_one_owner_leave_streams_to_the_others() -> None:
    streams = EventStreams("redis://127.0.0.1:1/0", limit=32, stopping=asyncio.Event())
    with ExitStack() as stack:

        def opens(owner: str, job_id: str) -> bool:
            return stack.enter_context(streams.subscriber_slot(owner, job_id))

        assert [opens("a", "popular") for _ in range(6)] == [True] * 4 + [False] * 2
        assert sum(opens("a", f"job-{number}") for number in range(32)) == 12, "half of all"
        assert not streams.has_free_slot("a")
        assert sum(opens("b", f"job-{number}") for number in range(32)) == 8, "half of the rest"
        assert opens("c", "job")
    with streams.subscriber_slot("a", "popular") as has_slot:
        assert has_slot, "slots come back"


def test_a_slot_comes_back_when_its_client_hangs_up(
    api: Api, make_api: Callable[..., Running], tmp_path: Path
) -> None:
    """Also where so much was pipelined behind the request that its connection is not read."""
    settings = {
        "redis_url": api.redis_url,
        "storage_url": tmp_path.as_uri(),
        "max_event_streams": 1,
    }
    path = f"/jobs/{api.job()}/events"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with make_api(**settings) as running:

        def takes_it(behind: bytes) -> bool:
            with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
                connection.sendall(request + behind)
                return connection.recv(12) == b"HTTP/1.1 200"

        for behind in (b"", b"x", request * 2000, b""):  # each takes the slot of the one before
            until(partial(takes_it, behind), what="a free slot")


async def _nothing() -> None:
    """A check that never refuses."""
