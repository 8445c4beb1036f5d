"""POST /generate with `Prefer: wait`: the job or its picture in the answer, as long as it takes."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack

import httpx

from service.core.job import JobError, JobMetrics
from service.core.transitions import Step
from tests.running import until
from tests.service.conftest import PNG, Api


def listed(api: Api) -> dict[str, tuple[str, int]]:
    """Status and seed of each job."""
    jobs = api.client.get("/jobs?limit=100").json()["jobs"]
    return {job["id"]: (job["status"], job["input"]["seed"]) for job in jobs}


def test_a_client_that_hangs_up_while_waiting_keeps_its_job(api: Api) -> None:
    known = listed(api).keys()
    request = httpx.Request(
        "POST",
        f"{api.running.url}/generate",
        data={"seed": "99"},
        files={"image": ("a.png", PNG)},
        headers={"prefer": "wait=60"},
    )
    lines = [b"POST /generate HTTP/1.1", *(b"%s: %s" % line for line in request.headers.raw)]
    with socket.create_connection(("127.0.0.1", api.running.port)) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + request.read())
        new = until(lambda: listed(api).keys() - known, what="the job of the client that waits")
    assert [listed(api)[job_id] for job_id in new] == [("queued", 99)]


def wait_and_finish(api: Api, **options: object) -> httpx.Response:
    """POST with `Prefer: wait`, while a worker does the job."""
    queued = set(api.redis.lrange("rq:queue:imageprompt", 0, -1))
    images = int(options.pop("images", 1))

    def work() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            new = set(api.redis.lrange("rq:queue:imageprompt", 0, -1)) - queued
            if new:
                api.finish(new.pop().decode(), images=images)
                return
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        return api.post(**options)
    finally:
        worker.join()


def test_a_client_that_waits_is_answered_the_finished_job(api: Api) -> None:
    answer = wait_and_finish(api, headers={"prefer": "wait=60"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=60"
    assert answer.json()["status"] == "succeeded"
    assert "retry-after" not in answer.headers


def test_a_client_that_waits_for_a_picture_is_answered_its_bytes(api: Api) -> None:
    headers = {"prefer": "wait=60", "accept": "image/*"}
    answer = wait_and_finish(api, headers=headers)
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "7"
    assert answer.headers["x-job-id"] in answer.headers["location"]
    assert "Accept" in answer.headers["vary"]


def test_two_pictures_are_answered_as_json_whatever_is_preferred(api: Api) -> None:
    headers = {"prefer": "wait=60", "accept": "image/png"}
    answer = wait_and_finish(api, fields={"num_images": 2}, headers=headers, images=2)
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.json()["images"]) == 2


def test_the_accepted_format_is_made_unless_another_is_asked_for(api: Api) -> None:
    headers = {"prefer": "wait=1", "accept": "image/webp"}
    assert api.post(headers=headers).json()["input"]["output_format"] == "webp"
    asked = api.post({"output_format": "jpeg"}, headers=headers)
    assert asked.json()["input"]["output_format"] == "jpeg"


def test_waiting_ends_with_202_when_the_time_is_up(api: Api) -> None:
    answer = api.post(headers={"prefer": "wait=1"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")
    at_once = api.post(headers={"prefer": "respond-async"})
    assert (at_once.status_code, at_once.headers["preference-applied"]) == (202, "respond-async")


def poll(api: Api, job_id: str, **headers: str) -> httpx.Response:
    """GET the job."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.client.get(f"/jobs/{job_id}", headers=named)


def test_a_job_that_is_known_is_answered_without_its_body(api: Api) -> None:
    job_id = api.job()
    first = poll(api, job_id)
    etag = first.headers["etag"]
    assert etag.startswith("W/"), "eta_seconds is not part of it"
    same = poll(api, job_id, if_none_match=f'"x", {etag.removeprefix("W/")}')
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert "retry-after" in same.headers
    claim = api.claim(job_id)
    api.transitions.progress([Step(claim, 1, 30)])
    changed = poll(api, job_id, if_none_match=etag)
    assert (changed.status_code, changed.json()["progress"]["step"]) == (200, 1)
    api.transitions.progress([Step(claim, 2, 30)])
    assert poll(api, job_id, if_none_match=changed.headers["etag"]).json()["progress"]["step"] == 2
    assert poll(api, job_id, if_none_match="*").status_code == 304


def test_an_entity_tag_is_that_of_one_job_only(api: Api) -> None:
    one, other = api.job({"seed": 5}), api.job({"seed": 5})
    assert poll(api, other, if_none_match=poll(api, one).headers["etag"]).status_code == 200


def test_a_poll_that_waits_is_answered_once_the_job_has_ended(api: Api) -> None:
    job_id = api.job()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(poll, api, job_id, prefer="wait=60")
        claim = api.claim(job_id)
        api.transitions.progress([Step(claim, 1, 30)])
        assert not wait([waiting], timeout=0.5).done, "it waits for the end, not for a step"
        assert api.transitions.fail(claim, JobError(type="t", title="t", detail="d"), JobMetrics())
        answer = waiting.result(timeout=30)
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    again = poll(api, job_id, prefer="wait=60")
    assert (again.json()["status"], "preference-applied" in again.headers) == ("failed", False)


def test_a_poll_says_how_long_it_waited(api: Api) -> None:
    answer = poll(api, api.job(), prefer="wait=1")
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=1")


def test_a_poll_that_waits_and_knows_the_job_is_answered_at_its_next_change(api: Api) -> None:
    job_id = api.job()
    etag = poll(api, job_id).headers["etag"]
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(poll, api, job_id, prefer="wait=60", if_none_match=etag)
        api.claim(job_id)
        answer = waiting.result(timeout=30)
    assert (answer.status_code, answer.json()["status"]) == (200, "processing")
    etag = answer.headers["etag"]
    same = poll(api, job_id, prefer="wait=1", if_none_match=etag)
    assert (same.status_code, same.headers["preference-applied"]) == (304, "wait=1")


def test_a_poll_is_answered_at_once_where_no_more_can_wait(api: Api) -> None:
    job_id = api.job()
    with ExitStack() as stack:
        for _ in range(25):  # an eighth of all slots
            stream = stack.enter_context(api.client.stream("GET", f"/jobs/{job_id}/events"))
            assert stream.status_code == 200
        answer = poll(api, job_id, prefer="wait=60")
        assert (answer.status_code, "preference-applied" in answer.headers) == (200, False)


def test_a_client_that_hangs_up_while_it_polls_makes_place_for_another(api: Api) -> None:
    job_id = api.job()
    head = f"GET /jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n".encode()

    def held() -> bool:
        answer = poll(api, job_id, prefer="wait=1")
        return "preference-applied" in answer.headers

    with ExitStack() as stack:

        def one_more_has_no_place() -> bool:
            connection = socket.create_connection(("127.0.0.1", api.running.port))
            stack.enter_context(connection).sendall(head)
            return not held()

        until(one_more_has_no_place, what="all places of one job to be taken")
    until(held, what="a place")
