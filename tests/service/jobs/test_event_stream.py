"""Server-sent events: in order, resumable, and ended by `done`."""

from collections.abc import Callable
from pathlib import Path

import httpx

from service.core import redis_keys
from tests.running import KEEP, Running
from tests.service.conftest import Api, problem, sse


def test_events_tell_the_whole_story_and_end_with_the_job(api: Api) -> None:
    job_id = api.job({"steps": 3})
    claim = api.claim(job_id)
    for step in (1, 2, 3):
        api.transitions.progress(claim, step, 3)
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
        "preview",
        "status",
        "status",
        "status",
        "done",
    ]
    assert events[3][2] == {"step": 2, "total": 3}
    assert events[-1][2]["id"] == job_id
    assert events[-1][2]["status"] == "succeeded"


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
    again = sse(api.client.get(url, headers={"last-event-id": last[0]}).text)
    assert [name for _, name, _ in again] == ["done"]
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
